"""F2, F23: a worker is killed between two lines of its work: nothing is lost or made twice."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import (
    assert_made,
    killed,
    start_struck,
    tally,
    worker_of,
)
from tests.support.stack import Stack, eventually
from worker.store import keyspace

POPPED = "before worker.runtime.runner:Runner.run"
RETENTION_SECONDS = 5.0

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


@pytest.mark.timeout(300)
def test_f02_workers_killed_between_pop_and_start_lose_no_request(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    workers = [start_struck(stack, f"SIGKILL {POPPED}") for _ in range(times(2, 10))]
    ids = [client.submit() for _ in workers]
    for worker in workers:
        killed(worker)
    assert set(stack.redis.lrange(keyspace.RQ_INTERMEDIATE, 0, -1)) == set(ids)
    for request_id in ids:
        record = stack.record(request_id)
        assert (record["status"], record["attempt"]) == ("QUEUED", "0")
    stack.start_worker()
    healthy = time.monotonic()
    eventually(lambda: all(stack.record(name)["status"] == "COMPLETED" for name in ids))
    seconds = time.monotonic() - healthy
    for request_id in ids:
        assert_made(client, request_id, attempts=2)
        assert tally(stack, "run.started")[request_id] == 1
    assert stack.redis.llen(keyspace.RQ_INTERMEDIATE) == 0
    figure(f"F2: {len(ids)} popped and lost requests all done {seconds:.1f} s after a sign-on")


@pytest.mark.slow
def test_f02_a_request_that_is_popped_and_lost_three_times_ends_failed(
    stack: Stack, client: Client
) -> None:
    poison = client.submit()
    for attempt in ("0", "1", "2"):
        killed(start_struck(stack, f"SIGKILL {POPPED}"))
        assert stack.record(poison)["attempt"] == attempt
    stack.start_worker()
    body = client.ended(poison)
    assert (body["status"], body["error_code"]) == ("FAILED", "worker_lost")
    assert tally(stack, "run.started")[poison] == 0


PLACES = {
    # Nothing, if its ffmpeg dies with it before that has begun to write.
    "before models.video.encoding:_close": ([".mp4.part"], []),
    "before worker.outputs.local:LocalOutputs.publish": ([".mp4.part"],),
    "after worker.outputs.local:LocalOutputs.publish": ([".mp4"],),
    "after worker.store.worker_side:WorkerStore.complete": ([".mp4"],),
}
"""Where a worker dies on the way to the end, and what it can leave of its video."""


def test_f23_a_worker_killed_around_the_finish_leaves_no_second_result_and_no_file(
    stack: Stack, client: Client, figure: Figure
) -> None:
    retention = f"{RETENTION_SECONDS:g}"
    struck = {
        start_struck(stack, f"SIGKILL {place}", retention_seconds=retention): place
        for place in PLACES
    }
    ids = [client.submit() for _ in struck]
    for worker in struck:
        killed(worker)
    place_of = {name: struck[worker_of(stack, name)] for name in ids}
    assert set(place_of.values()) == set(PLACES)
    left = stack.outputs()
    for request_id, place in place_of.items():
        of_it = [name for name in left if request_id in name]
        assert [name[name.index(".") :] for name in of_it] in PLACES[place]
    done = next(name for name, place in place_of.items() if place.endswith("complete"))
    assert {name for name in ids if stack.record(name)["status"] == "COMPLETED"} == {done}
    assert_made(client, done, attempts=1)
    assert "run.completed" not in stack.log_of(worker_of(stack, done))
    lost = [request_id for request_id in ids if request_id != done]
    stack.start_worker(retention_seconds=retention)
    for request_id in lost:
        assert_made(client, request_id, attempts=2)
    kept = {stack.record(request_id)["file_name"] for request_id in lost}
    orphans = {name for name in stack.outputs() if done not in name} - kept
    assert orphans == {name for name in left if done not in name}
    runs = tally(stack, "run.started")
    assert [runs[request_id] for request_id in [done, *lost]] == [1, 2, 2, 2]
    assert not [process for process in psutil.process_iter(["cmdline"]) if encodes(process, ids)]
    ended = time.monotonic()
    eventually(lambda: stack.outputs() == [])
    assert not any(map(stack.record, ids))
    figure(
        f"F23: {len(orphans)} orphan files swept {time.monotonic() - ended:.1f} s after the end,"
        f" kept for {RETENTION_SECONDS:g} s"
    )


def encodes(process: psutil.Process, ids: list[str]) -> bool:
    """Whether it is an ffmpeg that outlived its worker."""
    command = " ".join(process.info["cmdline"] or ())
    return any(request_id in command for request_id in ids)
