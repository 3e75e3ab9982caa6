"""The mock checkpoint and its engine, once for a module; no settings from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from diffusers import MochiPipeline

from models.engine import Engine
from models.mochi.loading.load import load
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.settings import EngineSettings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MOCHI_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def checkpoint(cache_dir: Path) -> Path:
    return write_mock_checkpoint(cache_dir)


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> Engine:
    return load(EngineSettings(mock=True), cache_dir)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> MochiPipeline:
    return Parts.read(checkpoint, Dtypes()).pipeline()
