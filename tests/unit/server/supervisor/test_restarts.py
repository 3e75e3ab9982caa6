"""When `up` starts again what has died."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.supervisor import children
from server.supervisor.children import Child
from tests.support.stack import eventually


@contextmanager
def child(folder: Path, code: str) -> Iterator[Child]:
    """A process that runs `code`."""
    (folder / "doomed.py").write_text(code)
    doomed = Child("doomed", os.environ | {"PYTHONPATH": str(folder)})
    yield doomed
    doomed.kill()


def deaths(doomed: Child, count: int) -> list[float]:
    """The pauses after the first deaths."""
    pauses: list[float] = []

    def watch() -> bool:
        with capture_logs() as logs:
            assert doomed.watch()
        pauses.extend(entry["again_in"] for entry in logs if entry["event"] == "process.died")
        return len(pauses) == count

    eventually(watch)
    return pauses


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(children, "LONGEST_RESTART_SECONDS", 0.03)


def test_what_dies_at_its_start_is_started_again_after_longer_and_longer(tmp_path: Path) -> None:
    with child(tmp_path, "raise SystemExit(1)") as doomed:
        assert deaths(doomed, 4) == [0.01, 0.02, 0.03, 0.03]


def test_what_has_run_for_long_is_started_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STEADY_SECONDS", 0.0)
    with child(tmp_path, "raise SystemExit(1)") as doomed:
        assert deaths(doomed, 3) == [0.01, 0.01, 0.01]


def test_what_was_drained_is_started_again_and_wrong_settings_end_everything(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs, child(tmp_path, "raise SystemExit(0)") as drained:
        eventually(lambda: drained.watch() and len(logs) >= 2)
    assert {entry["event"] for entry in logs} == {"process.ended"}
    with child(tmp_path, f"raise SystemExit({os.EX_CONFIG})") as wrong:
        eventually(lambda: not wrong.watch())


def test_the_next_process_does_not_start_in_a_folder_that_has_been_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    place = tmp_path / "place"
    code = f"import os, pathlib\npathlib.Path({str(place)!r}).write_text(os.getcwd())"
    with child(tmp_path, code):
        eventually(lambda: place.is_file() and place.read_text() == "/")
