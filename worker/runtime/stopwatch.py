"""How long the stages of one run take."""

from __future__ import annotations

import time
from collections.abc import Callable

from models.engine import OnStep

DENOISING = "denoising"
"""With the reading of the prompt."""
VIDEO = "video"
"""Decoding and encoding, which go hand in hand."""
PUBLISHING = "publishing"
STEP = "step"
"""One of denoising, on average."""


class Stopwatch:
    """Runs from when it is made. One for each run."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lap = clock()
        self._steps: list[float] = []
        self.seconds: dict[str, float] = {}
        """Of each stage that is over."""

    def end(self, stage: str) -> None:
        """A stage is over, and the next begins."""
        now = self._clock()
        self.seconds[stage] = now - self._lap
        self._lap = now

    def timed(self, on_step: OnStep) -> OnStep:
        """The same, but the time between steps is noted; not before the first, which is other."""

        def note(step: int, total: int) -> None:
            self._steps.append(self._clock())
            if len(self._steps) > 1:
                first, last = self._steps[0], self._steps[-1]
                self.seconds[STEP] = (last - first) / (len(self._steps) - 1)
            on_step(step, total)

        return note
