"""F1, F15, F18: workers are killed, paused and poisoned, and every request ends once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from statistics import median

import psutil
import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import (
    assert_made,
    clear,
    killed,
    start_struck,
    start_workers,
    tally,
    worker_of,
)
from tests.support.stack import Stack, eventually

DETECTION_SECONDS = 20.0
"""Promised, from the death of a worker to the next start of its request."""

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


def started_again(stack: Stack, request_id: str) -> float:
    """When its second attempt was seen."""
    eventually(lambda: stack.record(request_id)["attempt"] == "2", seconds=DETECTION_SECONDS)
    return time.monotonic()


@pytest.mark.timeout(600)
def test_f01_a_worker_killed_in_a_job_is_noticed_and_another_finishes_it_once(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    lease = times(2, 10)  # the latter is the default
    start_workers(stack, 2, lease_seconds=str(lease))
    seconds = []
    for _ in range(times(1, 10)):
        request_id = client.submit(steps=20)
        client.running(request_id)
        worker = worker_of(stack, request_id)
        worker.kill()
        death = killed(worker)
        assert stack.record(request_id)["status"] == "PROCESSING"
        seconds.append(started_again(stack, request_id) - death)
        assert_made(client, request_id, attempts=2)
        assert tally(stack, "run.started")[request_id] == 2
        assert len([name for name in stack.outputs() if request_id in name]) == 1
        assert stack.redis.keys("rq:job:*") == []
        stack.start_worker(lease_seconds=str(lease))
    figure(
        f"F1: detection median {median(seconds):.1f} s, max {max(seconds):.1f} s,"
        f" {len(seconds)} kills, lease {lease} s"
    )


def test_a_sole_worker_that_is_killed_is_noticed_by_the_gateway(
    stack: Stack, client: Client
) -> None:
    worker = stack.start_worker()
    request_id = client.submit(steps=75)
    client.running(request_id)
    worker.send_signal(signal.SIGSTOP)
    assert client.http.delete(f"/v2/requests/{request_id}").status_code == 202
    worker.kill()
    body = eventually(lambda: client.result(request_id), seconds=DETECTION_SECONDS)
    assert (body["status"], body["error_code"]) == ("FAILED", "cancelled")


def test_f15_a_worker_paused_in_a_step_past_its_lease_stops_and_writes_nothing(
    stack: Stack, client: Client
) -> None:
    start_workers(stack, 2)
    request_id = client.submit(steps=20)
    client.running(request_id)
    zombie = worker_of(stack, request_id)
    zombie.send_signal(signal.SIGSTOP)
    body = client.ended(request_id)
    record, outputs = stack.record(request_id), stack.outputs()
    assert worker_of(stack, request_id) != zombie
    assert outputs == [record["file_name"]]
    zombie.send_signal(signal.SIGCONT)
    eventually(lambda: "run.lost" in stack.log_of(zombie))
    assert "run.completed" not in stack.log_of(zombie)
    assert (stack.record(request_id), client.result(request_id)) == (record, body)
    assert stack.outputs() == outputs
    assert_made(client, request_id, attempts=2)
    client.assert_made_once(client.submit(), client.submit())
    assert zombie.poll() is None


@pytest.mark.timeout(600)
def test_f15_the_finish_of_a_worker_paused_right_before_it_is_refused(
    stack: Stack, client: Client, times: Times
) -> None:
    for _ in range(times(1, 5)):
        zombie = start_struck(stack, "SIGSTOP before worker.store.worker_side:WorkerStore.complete")
        request_id = client.submit()
        eventually(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_STOPPED)
        (late,) = stack.outputs()
        stack.start_worker()
        body = client.ended(request_id)
        record = stack.record(request_id)
        assert set(stack.outputs()) == {late, record["file_name"]}
        zombie.send_signal(signal.SIGCONT)
        eventually(lambda: "run.late" in stack.log_of(zombie))
        assert (stack.record(request_id), client.result(request_id)) == (record, body)
        assert stack.outputs() == [record["file_name"]]
        assert_made(client, request_id, attempts=2)
        client.assert_made_once(client.submit())
        assert zombie.poll() is None
        clear(stack)
        client = Client(stack)


def test_f18_poison_kills_three_workers_each_ends_failed_and_harms_no_other(
    stack: Stack, client: Client
) -> None:
    """A segmentation fault, `os._exit`, and SIGKILL as the kernel sends it when memory is short."""
    deaths_of = {
        "crash": os.EX_SOFTWARE,
        "signal:SIGSEGV": -signal.SIGSEGV,
        "signal:SIGKILL": -signal.SIGKILL,
    }
    poisons = [client.submit(scenario) for scenario in deaths_of]
    others = [client.submit() for _ in range(3)]
    workers = [stack.start("worker") for _ in poisons]
    deaths = []

    def all_ended() -> bool:
        for worker in [worker for worker in workers if worker.poll() is not None]:
            workers.remove(worker)
            deaths.append(worker.returncode)
            workers.append(stack.start("worker"))
        return all(client.result(poison) for poison in poisons)

    eventually(all_ended, seconds=120)
    for poison in poisons:
        body = client.result(poison)
        assert (body["status"], body["error_code"]) == ("FAILED", "worker_lost")
        assert "died, on each of 3 attempts" in body["error"]
        assert tally(stack, "run.started")[poison] == 3
    assert sorted(deaths) == sorted([*deaths_of.values()] * 3)
    client.assert_made_once(*others)
    assert len(stack.outputs()) == len(others)
