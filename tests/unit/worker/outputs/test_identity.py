"""What the result cache takes for the same maker of files."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from models.engine import Engine, Traits
from models.mock.fake_engine import FakeEngine
from models.moderation.settings import ModerationSettings
from worker.outputs.identity import identity_of


class OtherEngine(FakeEngine):
    """Differs from the usual one in its traits and origin."""

    def __init__(self, origin: str = "", **traits: Any) -> None:
        super().__init__(0)
        self._origin, self._changes = origin, traits

    @property
    def traits(self) -> Traits:
        return replace(super().traits, **self._changes)

    @property
    def origin(self) -> str:
        return self._origin


def identity(engine: Engine | None = None, marks: str = "c2pa", **settings: Any) -> str:
    return identity_of(engine or FakeEngine(0), ModerationSettings(**settings), marks)


def executable(folder: Path, version: str) -> str:
    """An ffmpeg that tells this version."""
    path = folder / version / "ffmpeg"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\necho ffmpeg version {version} Copyright\n")
    path.chmod(0o755)
    return str(path)


def test_two_workers_with_the_same_settings_have_the_same() -> None:
    assert identity() == identity()


@pytest.mark.parametrize(
    "change",
    [
        *({"precision": "bf16"}, {"device": "another card"}, {"lossy": ("step cache",)}),
        *({"gpus": 2}, {"loras": {"ink": "a digest"}}, {"origin": "other weights"}),
    ],
)
def test_another_engine_has_another(change: dict[str, Any]) -> None:
    assert identity(OtherEngine(**change)) != identity(OtherEngine())


def test_other_numbers_of_a_lora_have_another() -> None:
    engines = [OtherEngine(loras={"ink": digest}) for digest in ("one", "another")]
    assert len({*map(identity, engines)}) == 2


def test_other_marks_and_stricter_moderation_have_another() -> None:
    different = [identity(), identity(marks="off"), identity(moderation_frames_threshold=0.4)]
    assert len({*different}) == 3


def test_other_terms_in_the_same_file_have_another(tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    found = set()
    for text in ("gun", "gun\nbomb"):
        terms.write_text(text)
        found.add(identity(moderation_terms=str(terms)))
    assert len(found) == 2


def test_another_version_of_ffmpeg_at_the_same_name_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for version in ("5.1", "6.1"):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", executable(tmp_path, version))
        found.add(identity())
    assert len(found) == 2


def test_an_ffmpeg_that_does_not_run_stops_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    assert identity()


@pytest.mark.parametrize("library", ["pillow", "c2pa-python"])
def test_another_version_of_a_library_that_writes_files_has_another(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    usual, version = identity(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version(name) + "x" * (name == library))
    assert identity() != usual
