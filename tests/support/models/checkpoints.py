"""Checkpoints in memory, and runs that are abandoned, for tests of engines."""

from __future__ import annotations

import pytest

from models.engine import Engine
from models.request.params import GenerateParams


class Kept:
    """What runs of one request have kept.

    Attributes:
        saved: how often.
        resumed_at: where each run went on that did not begin at the start.
    """

    def __init__(self, every: int = 1, data: bytes | None = None) -> None:
        self.every = every
        self.data = data
        self.saved = 0
        self.resumed_at: list[int] = []

    def load(self) -> bytes | None:
        return self.data

    def resumed(self, step: int) -> None:
        self.resumed_at.append(step)

    def save(self, data: bytes) -> None:
        self.data = data
        self.saved += 1


class AbandonedError(Exception):
    """Raised from a step."""


def abandon(
    engine: Engine, asked: GenerateParams, kept: Kept, at: int, stop_after: int | None = None
) -> None:
    """Run until `at` steps are reported."""

    def on_step(step: int, _steps: int) -> None:
        if step == at:
            raise AbandonedError

    with pytest.raises(AbandonedError):
        engine.generate(asked, on_step, kept, None, stop_after)


def run(
    engine: Engine, asked: GenerateParams, kept: Kept | None, stop_after: int | None = None
) -> tuple[list[bytes], list[int]]:
    """Run to the end: the frames, and the steps that were done."""
    steps: list[int] = []
    clip = engine.generate(asked, lambda step, _: steps.append(step), kept, None, stop_after)
    return list(clip.frames), [step for step in steps if step]
