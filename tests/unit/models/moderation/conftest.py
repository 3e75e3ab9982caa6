"""Tiny classifiers on the disk; no settings from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.moderation.settings import ModerationSettings
from tests.support.models.classifiers import write_classifier, write_guard, write_image_classifier


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ModerationSettings.model_fields:
        monkeypatch.delenv(f"MOCHI_{name.upper()}", raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifiers")
    write_guard(folder / "guard")
    write_classifier(folder / "classifier")
    write_image_classifier(folder / "images")
    return folder
