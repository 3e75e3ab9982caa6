"""Runs measurements in order of worth while time is left, and goes on in the next call."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDED = "ended"
"""The figure with which a phase ends, by itself or by an error."""
KINDS = ("*.jsonl", "*.json.gz", "*.txt", "*.xml")
"""Files that go into the archive."""
MAX_SHOWN = 240
"""Characters of a figure on the terminal."""


class Figures:
    """A file with a line of JSON for each figure. Calls append to it."""

    def __init__(self, path: Path, seconds: Callable[[], float]) -> None:
        """Make the file, or drop the line that a crash may have cut off at its end.

        Args:
            path: of the file; its folder is made.
            seconds: since this call began.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        self._path = path
        self._seconds = seconds

    def add(self, phase: str, figure: str, **values: Any) -> None:
        """Write a figure to the disk at once: the next one may crash the process."""
        at = round(self._seconds(), 2)
        line = json.dumps({"phase": phase, "at": at, "figure": figure, **values}, default=str)
        with self._path.open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        sys.stdout.write(f"{line if len(line) <= MAX_SHOWN else f'{line[:MAX_SHOWN]}…'}\n")
        sys.stdout.flush()

    def ended(self) -> set[str]:
        """Phases that ended in this or an earlier call."""
        figures = map(json.loads, self._path.read_text().splitlines())
        return {each["phase"] for each in figures if each["figure"] == ENDED}


@dataclass(frozen=True)
class Phase:
    """A measurement.

    Attributes:
        seconds: that it may take; it is skipped when fewer are left.
    """

    name: str
    seconds: float
    run: Callable[[], object]


def run_phases(
    phases: Iterable[Phase],
    figures: Figures,
    left: Callable[[], float],
    recover: Callable[[], bool],
    only: Collection[str] = (),
) -> bool:
    """Run each phase that has not ended in an earlier call, or those in `only`.

    Args:
        phases: the most important first.
        figures: gets the end of each phase.
        left: seconds until this call must end.
        recover: tidies up after an error; False if nothing can be measured any more. The next call
            then goes on after the phase that failed.
        only: names of phases; empty for all.

    Returns:
        Whether none failed.
    """
    ended = set() if only else figures.ended()
    succeeded = True
    for phase in phases:
        if phase.name in ended or (only and phase.name not in only):
            continue
        if left() < phase.seconds:
            figures.add(phase.name, "skipped", seconds_left=left(), takes=phase.seconds)
            continue
        if _succeeds(phase, figures, left):
            continue
        succeeded = False
        if not recover():
            figures.add(phase.name, "stopped", reason="The device does not work any more.")
            break
    return succeeded


def _succeeds(phase: Phase, figures: Figures, left: Callable[[], float]) -> bool:
    before, error = left(), {}
    try:
        phase.run()
    except Exception as exception:  # noqa: BLE001 (the other phases are measured all the same)
        error = {"error": str(exception) or repr(exception), "trace": traceback.format_exc()}
    figures.add(phase.name, ENDED, seconds=before - left(), **error)
    return not error


def pack(folder: Path) -> Path:
    """Put the figures, traces and log of a folder into one archive; return its path."""
    archive = folder / "figures.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(each for kind in KINDS for each in folder.glob(kind)):
            tar.add(path, path.name)
    return archive
