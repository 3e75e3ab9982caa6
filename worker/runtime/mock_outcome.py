"""Simulated speed and outcomes for engines without real weights."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable

from models.errors import ContentBlockedError, EngineError, OutOfMemoryError
from models.mock.card_speed import MockSpeed
from models.mock.scenario import Scenario
from worker.job import Job
from worker.runtime.run import Run

LONGEST_SLEEP_SECONDS = 0.05
"""Between two checks for cancellation and shutdown."""
FOREVER_SECONDS = 3600
BUG_TEXT = "cannot read /srv/private/weights with token hf_do_not_show"
"""The text of the exception of the scenario `bug`."""


class MockOutcome:
    """Stands between an engine without real weights and its run: real ones are left alone.

    It slows the steps, counts their energy, and carries out the scenario halfway through them;
    where a run continues from a later checkpoint, at its first step.
    """

    def __init__(self, job: Job, run: Run, speed: MockSpeed) -> None:
        self._run = run
        self._scenario = _scenario_of(job)
        self._step_seconds = speed.step_seconds(job.params)
        self._step_joules = speed.step_joules(job.params)
        self._slow_seconds = 0.0
        if self._scenario and self._scenario.name == "slow":
            self._slow_seconds = self._scenario.seconds / job.params.steps
        self._last_step = time.monotonic()

    def on_step(self, step: int, total: int) -> None:
        """The engine's step callback. The pause comes before the step is counted as done."""
        if step:
            self._wait_until(self._last_step + self._step_seconds)
            self._wait_until(time.monotonic() + self._slow_seconds)
            if self._step_joules is not None:
                self._run.energy.add(self._step_joules)
        self._last_step = time.monotonic()
        self._run.on_step(step, total)
        if self._scenario and step >= self._scenario.first_step(total):
            scenario, self._scenario = self._scenario, None
            _carry_out(scenario)

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self._run.check()
            time.sleep(min(left, LONGEST_SLEEP_SECONDS))


def warnings_of(job: Job, *, is_mock: bool) -> tuple[str, ...]:
    """Warnings of the scenario for the client; none with real weights."""
    scenario = _scenario_of(job)
    return (scenario.text,) if is_mock and scenario and scenario.name == "warn" else ()


def early_expiry(job: Job) -> float | None:
    """Seconds from the end until the video is removed, where its scenario sets them."""
    scenario = _scenario_of(job)
    return scenario.seconds if scenario and scenario.name == "expire" else None


def _scenario_of(job: Job) -> Scenario | None:
    return Scenario.parse(job.scenario, of_tests=True) if job.scenario else None


def _carry_out(scenario: Scenario) -> None:
    match scenario.name:
        case "fail" | "late_validation":
            raise EngineError(scenario.text or "Failed as requested by the mock scenario.")
        case "blocked":
            raise ContentBlockedError("mock scenario", "frames")
        case "out_of_memory":
            raise OutOfMemoryError(
                "The GPU is out of memory, as requested by the mock scenario. Ask for fewer frames."
            )
        case "bug":
            raise RuntimeError(BUG_TEXT)
        case "crash":
            os._exit(os.EX_SOFTWARE)
        case "signal":
            os.kill(os.getpid(), signal.Signals[scenario.text])
        case "hang":
            _never_return(time.sleep)
        case "freeze":
            # PyDLL keeps the GIL, as C code does that hangs and has not released it.
            _never_return(ctypes.PyDLL(None).sleep)


def _never_return(sleep: Callable[[int], object]) -> None:
    while True:
        sleep(FOREVER_SECONDS)
