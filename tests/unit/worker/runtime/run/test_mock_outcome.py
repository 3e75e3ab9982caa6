"""What a mock scenario does to a run of the fake engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from models.errors import ContentBlockedError, EngineError, OutOfMemoryError
from models.mock.card_speed import AT_ONCE
from models.mock.fake_engine import FakeEngine
from tests.support.jobs import params
from tests.support.models.checkpoints import Kept, abandon
from worker.job import Job, Status
from worker.process.shutdown import Stop
from worker.runtime.mock_outcome import (
    BUG_TEXT,
    FOREVER_SECONDS,
    MockOutcome,
    early_expiry,
    warnings_of,
)
from worker.runtime.run import Run
from worker.store.worker_side import Lease

HALF = [0, 1, 2, 3, 4, 5]
"""The steps of a run of ten that ends halfway."""


def job(scenario: str) -> Job:
    return Job("an-id", "a-key", Status.PROCESSING, params().model_dump_json(), 1, 0,
               scenario=scenario)  # fmt: skip


def run(scenario: str, steps: list[int], kept: Kept | None = None) -> None:
    """Run the fake engine to its end, and note the steps that it reports."""
    of_request = Run(Lease("an-id", "a-run"), 60, Stop())
    on_step = MockOutcome(job(scenario), of_request, AT_ONCE).on_step

    def noted(step: int, total: int) -> None:
        steps.append(step)
        on_step(step, total)

    FakeEngine(0, lambda _: None).generate(params(), noted, kept)


@pytest.mark.parametrize(
    ("scenario", "error", "text"),
    [
        ("fail", EngineError, "Failed as requested by the mock scenario."),
        ("fail:no light in the room", EngineError, "^no light in the room$"),
        ("blocked", ContentBlockedError, "mock scenario"),
        ("out_of_memory", OutOfMemoryError, "out of memory"),
        ("bug", RuntimeError, BUG_TEXT),
    ],
)
def test_a_scenario_is_carried_out_halfway(
    scenario: str, error: type[Exception], text: str
) -> None:
    steps: list[int] = []
    with pytest.raises(error, match=text):
        run(scenario, steps)
    assert steps == HALF


@pytest.mark.parametrize("at", [4, 6, 10])
def test_a_scenario_is_carried_out_wherever_the_run_continues(at: int) -> None:
    kept = Kept(1)
    abandon(FakeEngine(0), params(), kept, at)
    steps: list[int] = []
    with pytest.raises(EngineError):
        run("fail", steps, kept)
    assert steps == [0, *range(at, max(at, 5) + 1)]


def test_a_step_that_hangs_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        assert seconds == FOREVER_SECONDS
        raise TimeoutError

    monkeypatch.setattr(time, "sleep", sleep)
    steps: list[int] = []
    with pytest.raises(TimeoutError):
        run("hang", steps)
    assert steps == HALF


def test_only_the_scenario_of_a_warning_gives_a_video_one_and_only_on_mock_weights() -> None:
    assert warnings_of(job("warn:Watch out."), is_mock=True) == ("Watch out.",)
    assert warnings_of(job("warn:Watch out."), is_mock=False) == ()
    assert warnings_of(job("fail:Watch out."), is_mock=True) == ()
    assert warnings_of(job(""), is_mock=True) == ()


def test_only_the_scenario_of_an_expiry_removes_a_video_early() -> None:
    assert early_expiry(job("expire:2.5")) == 2.5
    assert early_expiry(job("slow:2.5")) is None
    assert early_expiry(job("")) is None


@pytest.mark.parametrize(
    ("scenario", "status"),
    [
        ("crash", os.EX_SOFTWARE),
        ("signal:SIGSEGV", -signal.SIGSEGV),
        ("signal:SIGKILL", -signal.SIGKILL),
    ],
)
def test_some_scenarios_end_the_process_at_once(scenario: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", running(scenario)],
        capture_output=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")


def test_a_freeze_stops_every_thread() -> None:
    """Not even one that only has to wake up."""
    code = "import threading\nthreading.Timer(0.2, print, ['awake']).start(); print('asked')\n"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", running("freeze", code)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout
    with process, process.stdout:
        assert process.stdout.readline() == b"asked\n"
        time.sleep(1)  # five times as long as the thread sleeps
        assert process.poll() is None
        process.kill()
        assert process.stdout.read() == b""


def running(scenario: str, before: str = "") -> str:
    """Python code that carries a scenario out."""
    return (
        "from models.mock.scenario import Scenario\n"
        "from worker.runtime.mock_outcome import _carry_out\n"
        f"{before}"
        f"try: _carry_out(Scenario.parse({scenario!r}, of_tests=True))\n"
        "finally: print('an exception would come by here')"
    )
