"""Measures the stages of one run, for logs and histograms."""

from __future__ import annotations

import time
from collections.abc import Callable

from models.engine import OnStep

DENOISING = "denoising"
"""Includes prompt encoding."""
VIDEO = "video"
"""Frame decoding and video encoding, which overlap."""
PUBLISHING = "publishing"
STEP = "step"
"""Mean of one denoising step."""


class Stopwatch:
    """Starts when it is made. Use one for each run."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stage_began = clock()
        self._steps: list[float] = []
        self.seconds: dict[str, float] = {}
        """By ended stage."""

    def end(self, stage: str) -> None:
        """The stage ends now, and the next one begins."""
        now = self._clock()
        self.seconds[stage] = now - self._stage_began
        self._stage_began = now

    def timed(self, on_step: OnStep) -> OnStep:
        """The same callback, which also measures `STEP`. The first step, a warm-up, is left out."""

        def note(step: int, total: int) -> None:
            self._steps.append(self._clock())
            if len(self._steps) > 1:
                first, last = self._steps[0], self._steps[-1]
                self.seconds[STEP] = (last - first) / (len(self._steps) - 1)
            on_step(step, total)

        return note
