"""One run of one request: what the denoising loop asks at each step, and what may end it early."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

from worker.job import CANCELLED, Stage
from worker.pace import Pace
from worker.process.shutdown import Stop
from worker.store.worker_side import Lease


class AbandonedRun(BaseException):
    """Leaves the engine from within a step. No `except Exception` on the way can hold it."""


class LeaseLost(AbandonedRun):
    """Another worker has the request, or it has ended: write nothing."""


class GivenBack(AbandonedRun):
    """This worker must stop now: back to the queue with the request."""


class EndedEarly(AbandonedRun):
    """The request ends FAILED."""

    def __init__(self, error_code: str, error: str) -> None:
        super().__init__(error)
        self.error_code = error_code
        self.error = error


@dataclass
class Run:
    """Shared by the thread that denoises and the one that beats.

    Attributes:
        lease: what this run may write to.
        seconds: how long it may take.
        stop: whether the process must stop, and the request goes back.
        attempt: which one of the request it is.
        lost: set by the heart when the lease is not ours any more.
        cancelled: set by the heart when the client wants it no more.
        step: denoising steps done.
        entered: its stages so far, and when each began, in nanoseconds since 1970.
        preview: a step and a picture of it that the heart has not taken along yet.
        is_watched: whether silence means that the engine hangs.
        is_given_back: set by the heart, which need not wait for the next step.
    """

    lease: Lease
    seconds: float
    stop: Stop
    attempt: int = 1
    lost: Event = field(default_factory=Event)
    cancelled: Event = field(default_factory=Event)
    step: int = 0
    entered: list[tuple[Stage, int]] = field(
        default_factory=lambda: [(Stage.ENCODING_PROMPT, time.time_ns())]
    )
    preview: tuple[int, str] | None = None
    is_watched: bool = True
    is_given_back: bool = False
    _started: float = field(default_factory=time.monotonic)
    _last_sign: float = field(default_factory=time.monotonic)
    _steps_at: list[float] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str | int]:
        """For lines of the log that another thread writes."""
        return {"request_id": self.lease.request_id, "attempt": self.attempt}

    @property
    def stage(self) -> Stage:
        """Where it is; the heart tells the broker."""
        return self.entered[-1][0]

    def enter(self, stage: Stage) -> None:
        """It has come so far."""
        if stage is not self.stage:
            self.entered.append((stage, time.time_ns()))

    def on_step(self, step: int, _total: int) -> None:
        """The engine's step callback."""
        self.enter(Stage.DENOISING)
        self.step = step
        self.check()
        self._steps_at.append(self._last_sign)

    def checked(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        """The frames, with a check before each: decoding takes long as well."""
        self.enter(Stage.DECODING)
        for frame in frames:
            self.check()
            yield frame
        self.enter(Stage.ENCODING_VIDEO)

    def check(self) -> None:
        """Note a sign of life, and leave the engine if there is a reason to.

        Raises:
            AbandonedRun: one of its kinds.
        """
        self._last_sign = time.monotonic()
        if self.stop.urgent:
            raise GivenBack
        if self.lost.is_set():
            raise LeaseLost
        if self.cancelled.is_set():
            raise EndedEarly("cancelled", CANCELLED)
        if self._last_sign - self._started > self.seconds:
            raise EndedEarly("timeout", f"The run took longer than {self.seconds:g} seconds.")

    def pace(self) -> Pace:
        """How fast it was, when its video is published."""
        first, last = self._steps_at[0], self._steps_at[-1]
        return Pace(
            prompt_seconds=first - self._started,
            step_seconds=(last - first) / (len(self._steps_at) - 1),
            video_seconds=time.monotonic() - last,
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What runs within may hang; what comes after may wait for the broker for long."""
        try:
            yield
        finally:
            self.is_watched = False

    def silent_seconds(self) -> float:
        """Since the last sign of life of a run that is watched."""
        return time.monotonic() - self._last_sign if self.is_watched else 0.0
