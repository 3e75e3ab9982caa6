"""An engine without a model, for tests of everything above it. Knows no torch, numpy or PIL."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator

from models.engine import Checkpoints, Clip, OnStep, Picture, Previews, Traits
from models.params import GenerateParams

FRAME_WIDTH, FRAME_HEIGHT = 106, 60


class FakeEngine:
    """Sleeps for a step, and fills a picture with one colour over another.

    The colours come from the seed and the prompt; how far the picture is filled, from the frame.
    """

    def __init__(self, step_seconds: float, sleep: Callable[[float], object] = time.sleep) -> None:
        """Make an engine.

        Args:
            step_seconds: how long a step takes, 0 or more.
            sleep: waits for as many seconds.
        """
        self._step_seconds = step_seconds
        self._sleep = sleep

    @property
    def traits(self) -> Traits:
        """See `Engine`."""
        return Traits("light mock", "CPU", "none", is_mock=True)

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
    ) -> Clip:
        """See `Engine`."""
        on_step(0, params.steps)
        first = (_resume(params, checkpoints) if checkpoints else 0) + 1
        for step in range(first, params.steps + 1):
            self._sleep(self._step_seconds)
            on_step(step, params.steps)
            if checkpoints and step % checkpoints.every == 0 and step < params.steps:
                checkpoints.save(_state(params, step))
            if previews and step % previews.every == 0 and step < params.steps:
                previews.show(Picture(step, "image/png", _png(_frame(params, step, params.steps))))
        return Clip(FRAME_WIDTH, FRAME_HEIGHT, _frames(params))


def _state(params: GenerateParams, step: int) -> bytes:
    """A checkpoint: a hash of request and step, which `_resume` finds again by comparing."""
    return hashlib.sha256(f"{step} {params.model_dump_json()}".encode()).digest()


def _resume(params: GenerateParams, checkpoints: Checkpoints) -> int:
    """Steps that an earlier run has done."""
    kept = checkpoints.load()
    done = (step for step in range(1, params.steps) if _state(params, step) == kept)
    step = next(done, 0)
    if step:
        checkpoints.resumed(step)
    return step


def _frames(params: GenerateParams) -> Iterator[bytes]:
    for index in range(params.frames):
        yield _frame(params, index + 1, params.frames)


def _frame(params: GenerateParams, done: int, total: int) -> bytes:
    digest = hashlib.sha256(f"{params.seed} {params.prompt}".encode()).digest()
    above, below = digest[:3], digest[3:6]
    pixels = FRAME_WIDTH * FRAME_HEIGHT
    filled = pixels * done // total
    return above * filled + below * (pixels - filled)


def _png(frame: bytes) -> bytes:
    """The simplest there is: 8 bits, RGB, no filter (PNG specification, 5 and 11)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return len(data).to_bytes(4) + name + data + checksum.to_bytes(4)

    row = 3 * FRAME_WIDTH
    rows = (b"\0" + frame[start : start + row] for start in range(0, len(frame), row))
    header = FRAME_WIDTH.to_bytes(4) + FRAME_HEIGHT.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )
