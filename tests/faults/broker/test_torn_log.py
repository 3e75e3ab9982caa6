"""F26: the machine dies while the broker writes, and the last write is on disk in part."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.support.client import kill_broker
from tests.support.jobs import find, submit
from tests.support.stack import Stack, eventually
from worker.job import Status
from worker.store import keyspace

Times = Callable[[int, int], int]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0", "lease_seconds": "2"}
    with Stack(tmp_path, **settings) as stack:
        yield stack


def log_of_writes(stack: Stack) -> Path:
    """The file that the broker appends to."""
    return max(stack.folder.glob("broker/appendonlydir/*.incr.aof"))


def tear(path: Path, length: int) -> None:
    """Cut all that comes after `length` bytes."""
    assert 0 < length < path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(length)


def requests_of(stack: Stack) -> set[str]:
    return {str(key).rpartition(":")[2] for key in stack.redis.keys(keyspace.record("*"))}


def is_completed(stack: Stack, request_id: str) -> bool:
    return find(stack.broker.url, request_id).status is Status.COMPLETED


def test_f26_of_a_torn_log_at_most_the_last_request_is_lost(stack: Stack, times: Times) -> None:
    """And never a part of it: a record without its place in the queue, or the reverse."""
    chance = random.Random(26)
    kept: set[str] = set()
    for _ in range(times(4, 40)):
        kept |= {submit(stack.broker.url) for _ in range(3)}
        path = log_of_writes(stack)
        sound = path.stat().st_size
        torn = submit(stack.broker.url)
        kill_broker(stack)
        tear(path, chance.randrange(sound + 1, path.stat().st_size))
        stack.broker.start()
        assert requests_of(stack) == kept
        assert {str(name) for name in stack.redis.zrange(keyspace.WAITING, 0, -1)} == kept
        assert set(map(str, stack.redis.lrange(keyspace.RQ_QUEUE, 0, -1))) == kept
        assert torn not in kept
    stack.start_worker()
    for request_id in kept:
        eventually(lambda: is_completed(stack, request_id))
        assert find(stack.broker.url, request_id).attempt == 1


def test_f26_a_result_that_was_torn_off_is_made_again(stack: Stack) -> None:
    worker = stack.start_worker()
    done, torn = submit(stack.broker.url), submit(stack.broker.url)
    for request_id in (done, torn):
        eventually(lambda: is_completed(stack, request_id))
    record = stack.record(done)
    kill_broker(stack)
    path = log_of_writes(stack)
    tear(path, path.read_bytes().rindex(b"COMPLETED"))
    stack.broker.start()
    assert stack.record(torn)["status"] == "PROCESSING"
    eventually(lambda: is_completed(stack, torn))
    assert find(stack.broker.url, torn).attempt == 2
    assert stack.record(torn)["file_name"] in stack.outputs()
    assert stack.record(done) == record
    assert worker.poll() is None
