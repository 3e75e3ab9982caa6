"""F3, F4, F5: workers are told to stop, at any time and while a step lasts long."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from statistics import median

import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import assert_made, clear, start_workers, tally
from tests.support.jobs import waiting
from tests.support.stack import APART_SECONDS, PATIENCE_SECONDS, Stack, eventually

LONG_STEP_SECONDS = 2.5
REQUEUED_SECONDS = 2.0
"""From when it is urgent: a beat, and patience with a busy machine. A step takes longer."""

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


@pytest.mark.timeout(900)
def test_f03_no_sigterm_at_any_time_under_load_is_swallowed_and_none_loses_a_request(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    """Each worker that is told to stop is replaced. Some are told twice, some while they start."""
    dice = random.Random(3)
    workers = start_workers(stack, 2)
    ids, told, seconds = [], [], []
    for _ in range(times(6, 100)):
        ids += [client.submit() for _ in range(3)]
        time.sleep(dice.uniform(0, 0.8))
        worker = workers.pop(0)
        workers.append(stack.start("worker"))
        seconds.append(
            seconds_to_stop(worker, again_after=dice.choice([None, None, 0.1, APART_SECONDS]))
        )
        told.append(worker)
    for worker in told:
        log = stack.log_of(worker)
        # Python's own start and end know of no handler: there is no run then.
        is_at_work = "run.started" in log and "worker.stopped" not in log
        assert worker.returncode == 0 or (worker.returncode == -signal.SIGTERM and not is_at_work)
    for request_id in ids:
        assert_made(client, request_id, attempts=1)  # none was used up
    runs, requeued = tally(stack, "run.started"), tally(stack, "run.requeued")
    assert all(runs[name] <= 1 + requeued[name] for name in ids)
    assert waiting(stack.redis) == []
    assert len(stack.outputs()) == len(ids)
    figure(
        f"F3: {len(told)} SIGTERM, {len(ids)} requests, {requeued.total()} requeued, 0 lost;"
        f" a worker ends after median {median(seconds):.1f} s, max {max(seconds):.1f} s"
    )


def seconds_to_stop(worker: subprocess.Popen[bytes], *, again_after: float | None) -> float:
    told = time.monotonic()
    worker.terminate()
    if again_after is not None:
        time.sleep(again_after)
        worker.terminate()
    worker.wait(PATIENCE_SECONDS)
    return time.monotonic() - told


def test_f04_sigterm_in_a_run_finishes_it_and_takes_no_other(stack: Stack, client: Client) -> None:
    worker = stack.start_worker()
    first, second = client.submit(steps=20), client.submit()
    client.running(first)
    worker.terminate()
    assert worker.wait(PATIENCE_SECONDS) == 0
    client.assert_made_once(first)
    assert stack.record(second)["attempt"] == "0"
    assert waiting(stack.redis) == [second]


@pytest.mark.parametrize("urgent", ["by-a-second-sigterm", "when-the-grace-is-over"])
def test_f04_a_run_is_requeued_first_while_its_step_still_lasts(
    stack: Stack, client: Client, figure: Figure, urgent: str
) -> None:
    by_signal = urgent == "by-a-second-sigterm"
    worker = stack.start_worker(
        fake_step_seconds=f"{LONG_STEP_SECONDS:g}", drain_seconds="30" if by_signal else "0.5"
    )
    first, second = client.submit(), client.submit()
    eventually(lambda: "run.started" in stack.log_of(worker))
    worker.terminate()
    time.sleep(APART_SECONDS)
    if by_signal:
        assert stack.record(first)["status"] == "PROCESSING"
        worker.terminate()
    since = time.monotonic()
    eventually(lambda: stack.record(first)["status"] == "QUEUED", seconds=REQUEUED_SECONDS)
    figure(f"F4: requeued {time.monotonic() - since:.2f} s after it was urgent, {urgent}")
    assert worker.poll() is None
    assert '"step": 0, "event": "run.requeued"' in stack.log_of(worker)  # the first one lasts
    assert client.status(first)["queue_position"] == 1
    assert waiting(stack.redis) == [first, second]
    if by_signal:
        assert worker.wait(PATIENCE_SECONDS) == 0
    else:
        worker.kill()
    assert {stack.record(name)["attempt"] for name in (first, second)} == {"0"}
    assert stack.outputs() == []
    stack.start_worker()
    for request_id in (first, second):
        assert_made(client, request_id, attempts=1)


@pytest.mark.timeout(300)
def test_f05_what_comes_after_idle_workers_were_told_to_stop_stays_in_the_queue(
    stack: Stack, client: Client, times: Times
) -> None:
    ids = []
    for _ in range(times(1, 10)):
        workers = start_workers(stack, 3)
        told = time.monotonic()
        for worker in workers:
            worker.terminate()
        while time.monotonic() < told + 1:
            ids.append(client.submit())
            time.sleep(0.1)
        assert [worker.wait(PATIENCE_SECONDS) for worker in workers] == [0, 0, 0]
        assert sorted(waiting(stack.redis)) == sorted(ids)
        assert {stack.record(name)["attempt"] for name in ids} == {"0"}
        assert stack.live_workers() == 0
        if ids:
            clear(stack)
            client, ids = Client(stack), []
