"""Pulls of weights in this process, with their progress, messages and files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.weights.folder import MANIFEST
from models.weights.layout import FLOAT32
from models.weights.pull import pull
from tests.support.services.hub import HUB_ID, FakeHub

SMALL = "vae/config.json"


class Reports:
    """The lines and the progress of a pull."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bytes: dict[str, list[tuple[int, int]]] = {}

    def progress(self, what: str, total: int) -> Callable[[int], None]:
        counted = self.bytes.setdefault(what, [(0, total)])
        lock = threading.Lock()

        def advance(count: int) -> None:
            with lock:
                counted.append((counted[-1][0] + count, total))

        return advance


def fetch(
    hub: FakeHub,
    data_dir: Path,
    revision: str = "",
    *,
    reports: Reports | None = None,
    name: str = HUB_ID,
    variant: str = FLOAT32,
) -> Path:
    reports = reports or Reports()
    return pull(
        name,
        revision,
        data_dir,
        variant=variant,
        progress=reports.progress,
        say=reports.lines.append,
    )


def refusal(
    hub: FakeHub,
    data_dir: Path,
    revision: str = "",
    *,
    name: str = HUB_ID,
    variant: str = FLOAT32,
) -> str:
    with pytest.raises(WeightsError) as error:
        fetch(hub, data_dir, revision, name=name, variant=variant)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def ignore(what: str, total: int) -> Callable[[int], None]:
    """No progress."""
    return lambda _count: None
