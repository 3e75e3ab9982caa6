"""F21: a request is cancelled at any time, and ends once."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import psutil
import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import (
    clear,
    killed,
    start_struck,
    start_workers,
    tally,
    worker_of,
)
from tests.support.jobs import waiting
from tests.support.stack import Stack, eventually

LONG = 75
"""Steps: almost four seconds, which no test waits for."""

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


def cancel(client: Client, request_id: str) -> tuple[int, str]:
    """The status of the answer, and what it says."""
    answer = client.http.delete(f"/v2/requests/{request_id}")
    return answer.status_code, answer.json()["status"]


ASKED = (202, "CANCELLATION_REQUESTED")
TOO_LATE = (200, "ALREADY_COMPLETED")


def is_cancelled(body: dict[str, Any]) -> bool:
    return (body.get("status"), body.get("error_code")) == ("FAILED", "cancelled")


def test_f21_a_waiting_request_ends_at_once_and_is_never_run(stack: Stack, client: Client) -> None:
    ids = [client.submit() for _ in range(5)]
    gone = ids[1::2]
    for request_id in gone:
        assert cancel(client, request_id) == ASKED
        assert is_cancelled(client.result(request_id))
    before = [stack.record(request_id) for request_id in gone]
    left = [request_id for request_id in ids if request_id not in gone]
    assert waiting(stack.redis) == left
    assert [client.status(request_id)["queue_position"] for request_id in left] == [1, 2, 3]
    stack.start_worker()
    client.assert_made_once(*left)
    assert not set(gone) & set(tally(stack, "run.started"))
    assert [stack.record(request_id) for request_id in gone] == before


def test_f21_a_running_request_ends_soon_and_leaves_no_file(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    worker = stack.start_worker()
    seconds = []
    for index in range(times(3, 50)):
        request_id = client.submit(steps=LONG)
        client.running(request_id, step=1 + index % 7)
        asked = time.monotonic()
        assert cancel(client, request_id) == ASKED
        assert cancel(client, request_id)[0] in {200, 202}
        body = client.ended(request_id)
        seconds.append(time.monotonic() - asked)
        assert is_cancelled(body)
        assert body["metrics"].get("retry_count") is None
        record = stack.record(request_id)
        assert int(record["step"]) < LONG
        assert cancel(client, request_id) == TOO_LATE
        assert stack.record(request_id) == record
    assert stack.outputs() == []
    client.assert_made_once(client.submit())
    assert worker.poll() is None
    figure(
        f"F21: cancel of a running request, steps of 50 ms: median {median(seconds):.2f} s,"
        f" max {max(seconds):.2f} s, {len(seconds)} times"
    )


def test_f21_a_finished_request_stays_as_it_is(stack: Stack, client: Client) -> None:
    stack.start_worker()
    done, failed = client.submit(), client.submit("fail:no film")
    for request_id in (done, failed):
        body = client.ended(request_id)
        record = stack.record(request_id)
        for _ in range(2):
            assert cancel(client, request_id) == TOO_LATE
        assert stack.record(request_id) == record
        assert client.result(request_id) == body
    client.assert_made_once(done)


@pytest.mark.timeout(600)
def test_f21_cancelled_at_the_instant_of_the_finish_a_request_ends_one_way_and_stays_so(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    at_once, steps = 4, 20
    start_workers(stack, at_once)
    length = max(seconds_of(client, client.submit(steps=steps)) for _ in range(2))
    dice = random.Random(21)
    answers: dict[str, tuple[int, str]] = {}
    ended: dict[str, dict[str, Any]] = {}
    for _ in range(times(3, 50)):
        ids = [client.submit(steps=steps) for _ in range(at_once)]
        eventually(lambda: all(stack.record(name)["status"] == "PROCESSING" for name in ids))
        began = time.monotonic()
        # A worker hears of it up to half a second later.
        moments = sorted(began + length - dice.uniform(-0.05, 0.6) for _ in ids)
        for request_id, moment in zip(ids, moments, strict=True):
            time.sleep(max(0.0, moment - time.monotonic()))
            answers[request_id] = cancel(client, request_id)
        for request_id in ids:
            client.ended(request_id)
            ended[request_id] = stack.record(request_id)
    files = set(stack.outputs())
    for request_id, record in ended.items():
        assert stack.record(request_id) == record
        if record["status"] == "COMPLETED":
            assert answers[request_id] == TOO_LATE
            assert record["file_name"] in files
        else:
            assert (record["error_code"], answers[request_id]) == ("cancelled", ASKED)
            assert not [name for name in files if request_id in name]
    # Each run has one end, and says which.
    assert set(tally(stack, "run.started").values()) == {1}
    outcomes = Counter(record["status"] for record in ended.values())
    ends = sum((tally(stack, f"run.{end}") for end in ("completed", "failed", "late")), Counter())
    assert {ends[request_id] for request_id in ended} == {1}
    assert len(outcomes) == 2 or len(ended) < 100
    too_late = sum(answer == TOO_LATE for answer in answers.values())
    figure(f"F21: {len(ended)} cancels near the finish: {dict(outcomes)}, {too_late} came after it")


def seconds_of(client: Client, request_id: str) -> float:
    client.ended(request_id)
    record = client.stack.record(request_id)
    return (int(record["ended_at"]) - int(record["started_at"])) / 1000


@pytest.mark.parametrize("moment", ["before", "after"])
def test_f21_a_cancel_that_its_worker_has_not_heard_of_holds_or_was_too_late(
    stack: Stack, client: Client, moment: str
) -> None:
    """The very instant: the worker stands still right before, or after, its record is COMPLETED."""
    worker = start_struck(
        stack, f"SIGSTOP {moment} worker.store.worker_side:WorkerStore.complete", lease_seconds="60"
    )
    request_id = client.submit()
    eventually(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    assert cancel(client, request_id) == (ASKED if moment == "before" else TOO_LATE)
    worker.send_signal(signal.SIGCONT)
    if moment == "before":
        assert is_cancelled(client.ended(request_id))
        eventually(lambda: not stack.outputs())
    else:
        client.assert_made_once(request_id)
    record = stack.record(request_id)
    assert cancel(client, request_id) == TOO_LATE
    client.assert_made_once(client.submit())
    assert stack.record(request_id) == record


def test_f21_a_cancelled_run_whose_worker_dies_or_stops_ends_cancelled_and_is_not_retried(
    stack: Stack, client: Client
) -> None:
    for end in ("kill", "terminate"):
        worker = stack.start_worker(fake_step_seconds="3", drain_seconds="0")
        request_id = client.submit()
        eventually(lambda: stack.record(request_id)["status"] == "PROCESSING")
        assert cancel(client, request_id) == ASKED
        assert client.result(request_id) == {}  # its step lasts
        getattr(worker, end)()
        if end == "kill":
            killed(worker)
            stack.start_worker()
        assert is_cancelled(client.ended(request_id))
        assert tally(stack, "run.started")[request_id] == 1
        assert worker_of(stack, request_id) is worker
        assert waiting(stack.redis) == []
        clear(stack)
        client = Client(stack)
