"""One run of one request: its progress, and the reasons that end it early."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

from models.engine import EnergyCounter, Picture
from worker.job import CANCELLED, Stage
from worker.pace import USUAL, Pace
from worker.process.shutdown import Stop
from worker.store.worker_side import Lease


class AbandonedRun(BaseException):
    """Leaves the engine from within a step. No `except Exception` on the way catches it."""


class LeaseLost(AbandonedRun):
    """Another worker has the request, or it has ended: write nothing."""


class Requeued(AbandonedRun):
    """This worker must stop now: the request goes back to the queue."""


class EndedEarly(AbandonedRun):
    """The request ends FAILED."""

    def __init__(self, error_code: str, error: str) -> None:
        super().__init__(error)
        self.error_code = error_code
        self.error = error


@dataclass
class RunEnergy:
    """Energy that all cards of a run have used since it began. Every thread may read it.

    Attributes:
        counter: of the cards; None where they have none. A simulated card's energy is added.
        joules: at the latest reading; None while none is known.
    """

    counter: EnergyCounter | None = None
    joules: float | None = None
    _start: float | None = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Read the counter at both ends of the block. Within a watch: a driver may hang."""
        self._start = self.counter() if self.counter else None
        try:
            yield
        finally:
            self.read()

    def read(self) -> None:
        if self.counter is None or self._start is None:
            return
        now = self.counter()
        if now is not None and now >= self._start:  # a driver that was reloaded counts from 0
            self.joules = now - self._start

    def add(self, joules: float) -> None:
        self.joules = (self.joules or 0.0) + joules


@dataclass
class Run:
    """Shared by the thread that denoises and the heartbeat thread.

    Attributes:
        lease: the right to write to the record.
        seconds: time limit.
        stop: the process's state of shutdown.
        attempt: of the request, from 1.
        pace: that the run is expected to have.
        energy: of its cards.
        lost: set by the heartbeat when another worker has the request, or it has ended.
        cancelled: set by the heartbeat when the client has cancelled.
        step: denoising steps done.
        steps: all of them; 0 before the first call of `on_step`.
        drawn: share of the frames that are encoded.
        entered: the stages so far, each with its start in nanoseconds since 1970.
        preview: step and picture that the heartbeat has not sent yet.
        may_have_checkpoint: whether it, or a run before, may have saved one.
        is_watched: whether silence means that the engine hangs.
        is_requeued: set by the heartbeat, which does not wait for the next step.
    """

    lease: Lease
    seconds: float
    stop: Stop
    attempt: int = 1
    pace: Pace = USUAL
    energy: RunEnergy = field(default_factory=RunEnergy)
    lost: Event = field(default_factory=Event)
    cancelled: Event = field(default_factory=Event)
    step: int = 0
    steps: int = 0
    drawn: float = 0.0
    entered: list[tuple[Stage, int]] = field(
        default_factory=lambda: [(Stage.ENCODING_PROMPT, time.time_ns())]
    )
    preview: tuple[int, str] | None = None
    may_have_checkpoint: bool = False
    is_watched: bool = True
    is_requeued: bool = False
    _started: float = field(default_factory=time.monotonic)
    _last_sign: float = field(default_factory=time.monotonic)
    _steps_at: list[float] = field(default_factory=list)

    @property
    def log_fields(self) -> dict[str, str | int]:
        """For log lines of other threads."""
        return {"request_id": self.lease.request_id, "attempt": self.attempt}

    @property
    def stage(self) -> Stage:
        return self.entered[-1][0]

    def enter(self, stage: Stage) -> None:
        if stage is not self.stage:
            self.entered.append((stage, time.time_ns()))

    @property
    def progress(self) -> int:
        """Per cent of the run's time, 0 to 99. It never decreases."""
        return self.pace.progress(self.steps, self.step, self.drawn) if self.steps else 0

    def on_step(self, step: int, total: int) -> None:
        """The engine's step callback. Raises as `check`."""
        self.enter(Stage.DENOISING)
        self.step, self.steps = step, total
        self.check()
        self._steps_at.append(self._last_sign)

    def checked(self, frames: Iterator[bytes], count: int) -> Iterator[bytes]:
        """The same `count` frames, with a check before each, as decoding takes long too."""
        self.enter(Stage.DECODING)
        for number, frame in enumerate(frames, start=1):
            self.check()
            yield frame
            self.drawn = number / count
        self.enter(Stage.ENCODING_VIDEO)

    def check(self) -> None:
        """Note a sign of life, and leave the engine if the run must end.

        Raises:
            AbandonedRun: one of its kinds.
        """
        self._last_sign = time.monotonic()
        if self.stop.urgent:
            raise Requeued
        if self.lost.is_set():
            raise LeaseLost
        if self.cancelled.is_set():
            raise EndedEarly("cancelled", CANCELLED)
        if self._last_sign - self._started > self.seconds:
            raise EndedEarly("timeout", f"The run took longer than {self.seconds:g} seconds.")

    @property
    def step_seconds(self) -> float:
        """Mean of one denoising step; the prompt's encoding is left out."""
        return (self._steps_at[-1] - self._steps_at[0]) / (len(self._steps_at) - 1)

    def measured(self) -> Pace:
        """The pace that it had. Call it when the video is published."""
        return Pace(
            prompt_seconds=self._steps_at[0] - self._started,
            step_seconds=self.step_seconds,
            video_seconds=time.monotonic() - self._steps_at[-1],
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for hangs within only: afterwards the run may wait long for the broker."""
        try:
            yield
        finally:
            self.is_watched = False

    def silent_seconds(self) -> float:
        """Since the last sign of life; 0 while the run is not watched."""
        return time.monotonic() - self._last_sign if self.is_watched else 0.0


@contextmanager
def timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the seconds that a part of a run has taken."""
    began = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - began


@dataclass(frozen=True)
class RunPreviews:
    """`models.engine.Previews` for one run: the heartbeat sends the pictures to the broker."""

    run: Run
    every: int

    def show(self, picture: Picture) -> None:
        """Replaces the picture before, sent or not; the run does not wait for the broker."""
        data = b64encode(picture.data).decode()
        self.run.preview = (picture.step, f"data:{picture.media_type};base64,{data}")
