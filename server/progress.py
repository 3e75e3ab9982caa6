"""How far a long thing is, on standard error: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BAR_SECONDS = 0.1
LINE_SECONDS = 15.0


class Meter:
    """Shows bytes. Used in a `with`; told by any thread, but by one at a time."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[float, int]] = {}
        """When each was shown last, and with how many bytes."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `what`."""
        now = time.monotonic()
        if what not in self._shown:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done)
            self._shown[what] = now, done
            return
        at, before = self._shown[what]
        if done < total and now - at < (LINE_SECONDS if self._bars.disable else BAR_SECONDS):
            return
        self._shown[what] = now, done
        if not self._bars.disable:
            self._bars.update(self._tasks[what], completed=done, total=total)
        elif done > before:
            speed = (done - before) / max(now - at, 0.001)
            self.say(f"{what}: {decimal(done)} of {decimal(total)}, {decimal(round(speed))}/s")
