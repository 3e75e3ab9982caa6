"""The worker process and RQ's queue: what it takes from it, and how it stops."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import find, submit, waiting
from tests.stack import Stack, eventually
from worker import keyspace
from worker.connection import WORKER_TIMEOUT_SECONDS, connect_worker
from worker.dispatch import TASK, rq_fields
from worker.job import Status
from worker.rq_worker import EngineWorker

SLOW = 20
"""Steps: two seconds, at a tenth of a second a step."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.1") as stack:
        yield stack


def plant(stack: Stack, job_id: str, data: bytes, **fields: Any) -> None:
    """Write a job as somebody can who has access to the broker."""
    names_and_values = rq_fields(job_id)
    job = dict(zip(names_and_values[::2], names_and_values[1::2], strict=True))
    stack.redis.hset(f"rq:job:{job_id}", mapping=job | {"data": data} | fields)  # type: ignore[arg-type]
    stack.redis.rpush(keyspace.RQ_QUEUE, job_id)


def call(name: str, *args: str) -> bytes:
    return zlib.compress(json.dumps([name, None, args, {}]).encode())


def is_running(stack: Stack, request_id: str) -> bool:
    return int(stack.record(request_id).get("step", 0)) >= 2


def test_planted_jobs_run_nothing_and_the_worker_goes_on(stack: Stack, tmp_path: Path) -> None:
    worker = stack.start_worker()
    canary = tmp_path / "canary"
    command = f"touch {canary}"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (command,)

    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/"
        plant(stack, "system", call("os.system", command))
        plant(stack, "pickle", zlib.compress(pickle.dumps(Payload())))
        plant(stack, "raw-pickle", pickle.dumps(("os.system", None, (command,), {})))
        plant(stack, "meta", call(TASK), meta=pickle.dumps(Payload()))
        plant(stack, "callback", call(TASK), success_callback_name="os.system")
        hooks = json.dumps([{"url": url, "status": "finished"}, {"url": url, "status": "failed"}])
        plant(stack, "webhook", call(TASK), webhooks=hooks)
        plant(stack, "no-status", call(TASK), status="EVIL")
        plant(stack, "no-number", call(TASK), result_ttl="EVIL")
        plant(stack, "no-data", b"", created_at="EVIL")
        stack.redis.set("rq:job:no-hash", "EVIL")
        stack.redis.rpush(keyspace.RQ_QUEUE, "no-hash", "nothing")
        request_id = submit(stack.broker.url)
        eventually(lambda: find(stack.broker.url, request_id).status is Status.COMPLETED)
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert worker.poll() is None
    assert not canary.exists()
    assert stack.log_of(worker).count("job.refused") >= 5
    eventually(lambda: not stack.redis.llen(keyspace.RQ_INTERMEDIATE))


def test_a_worker_takes_no_commands(stack: Stack) -> None:
    stack.start_worker()
    assert stack.redis.pubsub_channels() == []
    assert stack.redis.client_list("pubsub") == []


def test_rq_does_not_make_the_worker_wait_longer_for_a_broker_that_hangs(redis_url: str) -> None:
    connection = connect_worker(redis_url, decode_responses=False)
    worker = EngineWorker("ann", None, connection, stop_now=None)  # type: ignore[arg-type]
    options = worker.connection.connection_pool.connection_kwargs
    assert options["socket_timeout"] == WORKER_TIMEOUT_SECONDS
    connection.close()


def test_sigterm_stops_idle_workers_and_what_comes_then_stays_in_the_queue(stack: Stack) -> None:
    workers = [stack.start_worker() for _ in range(3)]
    told = time.monotonic()
    for worker in workers:
        worker.terminate()
    ids = set()
    while time.monotonic() < told + 1:
        ids.add(submit(stack.broker.url))
        time.sleep(0.15)
    assert [worker.wait(3) for worker in workers] == [0, 0, 0]
    assert time.monotonic() - told < 3
    assert set(waiting(stack.redis)) == ids
    assert {find(stack.broker.url, name).attempt for name in ids} == {0}
    assert stack.live_workers() == 0


def test_sigterm_in_a_run_finishes_it_and_takes_no_other(stack: Stack) -> None:
    worker = stack.start_worker()
    first, second = (submit(stack.broker.url, steps=SLOW) for _ in range(2))
    eventually(lambda: is_running(stack, first))
    worker.terminate()
    assert worker.wait(10) == 0
    assert find(stack.broker.url, first).status is Status.COMPLETED
    assert find(stack.broker.url, second).attempt == 0
    assert waiting(stack.redis) == [second]


def test_a_second_sigterm_gives_the_run_back_first_in_the_queue(stack: Stack) -> None:
    worker = stack.start_worker()
    first, second = (submit(stack.broker.url, steps=SLOW) for _ in range(2))
    eventually(lambda: is_running(stack, first))
    worker.terminate()
    time.sleep(0.2)
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(3) == 0
    job = find(stack.broker.url, first)
    assert (job.status, job.attempt, job.position) == (Status.QUEUED, 0, 1)
    assert waiting(stack.redis) == [first, second]
    assert stack.outputs() == []


def test_a_full_disk_fails_the_request_and_leaves_no_part_of_a_video(stack: Stack) -> None:
    worker = stack.start_worker(fake_step_seconds="0")
    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (16_384, most))
    full = submit(stack.broker.url, frames=160)
    eventually(lambda: find(stack.broker.url, full).status.is_final)
    assert find(stack.broker.url, full).status is Status.FAILED
    assert stack.outputs() == []
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))
    job_id = submit(stack.broker.url, frames=160)
    eventually(lambda: find(stack.broker.url, job_id).status is Status.COMPLETED)
    assert find(stack.broker.url, job_id).file_size > 16_384
