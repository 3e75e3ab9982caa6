"""What a run of a mock engine does beside making its video: a card's time, a wished-for outcome."""

from __future__ import annotations

import os
import time

from models.engine import OnStep
from models.errors import ContentBlockedError, EngineError, OutOfMemoryError
from models.mock.card_speed import MockSpeed
from models.mock.scenario import Scenario
from worker.job import Job
from worker.runtime.run import Run

LONGEST_NAP_SECONDS = 0.05
"""Between two checks whether the run is still wanted."""


class MockOutcome:
    """Stands between the engine and its run."""

    def __init__(self, job: Job, run: Run, speed: MockSpeed) -> None:
        self._run = run
        self._scenario = Scenario.parse(job.scenario) if job.scenario else Scenario("none")
        self._step_seconds = speed.step_seconds(job.params)
        if self._scenario.name == "slow":
            self._slow_seconds = self._scenario.seconds / job.params.steps
        else:
            self._slow_seconds = 0.0
        self._last_step = time.monotonic()

    def on_step(self, step: int, total: int) -> None:
        """The engine's step callback. The pause comes before the step is counted as done."""
        if step:
            self._wait_until(self._last_step + self._step_seconds)
            self._wait_until(time.monotonic() + self._slow_seconds)
        self._last_step = time.monotonic()
        self._run.on_step(step, total)
        if step == total // 2:
            self._come_true()

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self._run.check()
            time.sleep(min(left, LONGEST_NAP_SECONDS))

    def _come_true(self) -> None:
        match self._scenario.name:
            case "fail":
                raise EngineError("The request failed, as its mock scenario wanted it.")
            case "blocked":
                raise ContentBlockedError("mock scenario", "frames")
            case "out_of_memory":
                raise OutOfMemoryError(
                    "The GPU has too little memory, as the mock scenario wanted it. "
                    "Ask for fewer frames."
                )
            case "crash":
                os._exit(os.EX_SOFTWARE)


def on_step_of(job: Job, run: Run, speed: MockSpeed, *, is_mock: bool) -> OnStep:
    """What the engine is to call after each step: real weights are never slowed nor stopped."""
    return MockOutcome(job, run, speed).on_step if is_mock else run.on_step


def forget_after(job: Job) -> float | None:
    """Seconds after the end at which the video is to go, where its scenario wants it earlier."""
    scenario = Scenario.parse(job.scenario) if job.scenario else None
    return scenario.seconds if scenario and scenario.name == "expire" else None
