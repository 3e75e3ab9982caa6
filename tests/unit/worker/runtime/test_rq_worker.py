"""The worker process and RQ's queue: what it takes from it, and how it stops."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest
from redis import Redis

from models.engine import Clip
from models.errors import EngineBrokenError
from models.mock.card_speed import MockSpeed
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from server.app import create_app
from server.settings import ServerSettings
from tests.support.jobs import OWNER, ask_gateway, find, params, submit
from tests.support.stack import PATIENCE_SECONDS, Stack, eventually
from tests.support.wire import call as call_app
from worker.__main__ import work
from worker.broker.connection import WORKER_TIMEOUT_SECONDS, connect_gateway, connect_worker
from worker.errors import NoWorkerError, StorageError
from worker.job import Status
from worker.outputs.local import LocalOutputs
from worker.process.parent_watch import WITH_PARENT
from worker.process.shutdown import Stop
from worker.runtime import rq_worker
from worker.runtime.rq_worker import EngineWorker
from worker.settings import WorkerSettings
from worker.store import keyspace
from worker.store.fleet import fleet
from worker.store.rq_queue import TASK, rq_fields

SLOW = 20
"""Steps: two seconds, at a tenth of a second a step."""
LONG = 75
"""Steps that are not over before a test has seen some of them and sent its signals."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.1") as stack:
        yield stack


def plant(stack: Stack, job_id: str, data: bytes, **fields: Any) -> None:
    """Write a job as an attacker with access to the broker can."""
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
        stack.redis.rpush(keyspace.RQ_QUEUE, "no-hash", "nothing", b"\xff\xfe")
        request_id = submit(stack.broker.url)
        eventually(lambda: find(stack.broker.url, request_id).status is Status.COMPLETED)
        # The real one may have been run before them.
        eventually(lambda: not stack.redis.llen(keyspace.RQ_QUEUE))
        eventually(lambda: not stack.redis.llen(keyspace.RQ_INTERMEDIATE))
        eventually(lambda: stack.log_of(worker).count("job.refused") >= 5)
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert worker.poll() is None
    assert not canary.exists()


def test_a_worker_takes_no_commands(stack: Stack) -> None:
    stack.start_worker()
    assert stack.redis.pubsub_channels() == []
    assert stack.redis.client_list("pubsub") == []


def test_a_worker_leaves_nothing_in_rqs_registry(stack: Stack) -> None:
    stack.start_worker()
    request_id = submit(stack.broker.url)
    eventually(lambda: find(stack.broker.url, request_id).status is Status.COMPLETED)
    assert stack.redis.keys("rq:worker*") == []


def test_a_record_that_makes_no_sense_is_left_and_the_worker_goes_on(stack: Stack) -> None:
    broken, sound = (submit(stack.broker.url) for _ in range(2))
    stack.redis.hset(keyspace.record(broken), "created_at", "EVIL")
    worker = stack.start_worker()
    eventually(lambda: find(stack.broker.url, sound).status is Status.COMPLETED)
    assert stack.log_of(worker).count("run.unfinished") == 1
    assert worker.poll() is None


class Broken(FakeEngine):
    def generate(self, *_: object) -> NoReturn:
        raise EngineBrokenError("The GPU failed.")


def test_a_broken_engine_ends_the_worker_as_a_failure(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineWorker, "_install_signal_handlers", lambda _: None)
    first, second = (submit(redis_url) for _ in range(2))
    settings = WorkerSettings(data_dir=tmp_path, redis_url=redis_url)
    outputs = LocalOutputs(settings.outputs_dir)
    assert not work("ann", Broken(0), Moderation(), outputs, settings)
    assert find(redis_url, first).status is Status.PROCESSING
    assert find(redis_url, second).attempt == 0


def test_the_light_mock_of_a_group_is_as_quick_as_the_one_card_that_it_names(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Once(FakeEngine):
        def generate(self, *asked: Any) -> Clip:
            monkeypatch.setattr(Once, "generate", Broken.generate)
            return super().generate(*asked)

    monkeypatch.setattr(EngineWorker, "_install_signal_handlers", lambda _: None)
    first, _ = (submit(redis_url) for _ in range(2))
    settings = WorkerSettings(
        data_dir=tmp_path, redis_url=redis_url, gpus_per_video=8, mock_speed="h100"
    )
    work("ann", Once(0), Moderation(), LocalOutputs(settings.outputs_dir), settings)
    job = find(redis_url, first)
    step = MockSpeed.parse("h100").step_seconds(job.params)
    assert job.inference_seconds
    assert job.inference_seconds >= job.params.steps * step


def test_a_store_that_falls_silent_while_the_model_loads_does_not_end_the_worker(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_silent(_: LocalOutputs) -> str:
        raise StorageError("The store does not answer")

    # Undone at the end, as the thread that reads the mark lives as long as the process.
    monkeypatch.setattr(LocalOutputs, "mark", fall_silent)
    monkeypatch.setattr(EngineWorker, "_install_signal_handlers", lambda _: None)
    request_id = submit(redis_url)
    settings = WorkerSettings(data_dir=tmp_path, redis_url=redis_url)
    assert not work("ann", Broken(0), Moderation(), LocalOutputs(settings.outputs_dir), settings)
    assert find(redis_url, request_id).status is Status.PROCESSING


def test_rq_does_not_make_the_worker_wait_longer_for_a_broker_that_hangs(redis_url: str) -> None:
    connection = connect_worker(redis_url, decode_responses=False)
    worker = EngineWorker("ann", None, connection, stop=Stop())  # type: ignore[arg-type]
    options = worker.connection.connection_pool.connection_kwargs
    assert options["socket_timeout"] == WORKER_TIMEOUT_SECONDS
    connection.close()


def test_sigterm_ends_an_idle_worker_while_the_broker_is_away(stack: Stack) -> None:
    worker = stack.start_worker()
    stack.broker.stop()
    eventually(lambda: "broker.silent" in stack.log_of(worker))
    worker.terminate()
    assert worker.wait(PATIENCE_SECONDS) == 0


def test_sigterm_ends_a_worker_that_has_never_met_its_broker(stack: Stack) -> None:
    stack.broker.stop()
    worker = stack.start("worker")
    eventually(lambda: "broker.silent" in stack.log_of(worker))
    worker.terminate()
    assert worker.wait(PATIENCE_SECONDS) == 0


def finished_without_a_broker(stack: Stack) -> tuple[subprocess.Popen[bytes], str]:
    """A worker that was told to stop, and its request, whose video waits for the broker."""
    worker = stack.start_worker()
    request_id = submit(stack.broker.url, steps=SLOW)
    eventually(lambda: is_running(stack, request_id))
    stack.broker.stop()
    eventually(lambda: "run.encoded" in stack.log_of(worker))
    worker.terminate()
    time.sleep(2)
    assert worker.poll() is None
    return worker, request_id


def test_after_sigterm_a_result_still_waits_for_the_broker(stack: Stack) -> None:
    worker, request_id = finished_without_a_broker(stack)
    stack.broker.start()
    assert worker.wait(PATIENCE_SECONDS) == 0
    assert find(stack.broker.url, request_id).status is Status.COMPLETED


def test_a_second_sigterm_leaves_a_result_that_waits_for_the_broker(stack: Stack) -> None:
    worker, request_id = finished_without_a_broker(stack)
    worker.terminate()
    assert worker.wait(PATIENCE_SECONDS) == 0
    assert "run.left_behind" in stack.log_of(worker)
    stack.broker.start()
    assert find(stack.broker.url, request_id).status is Status.PROCESSING


def test_a_worker_whose_parent_dies_gives_its_run_back_at_once(stack: Stack) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker", WITH_PARENT],
        env=stack.environ,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as worker:
        request_id = submit(stack.broker.url, steps=LONG)
        eventually(lambda: is_running(stack, request_id))
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(PATIENCE_SECONDS) == 0
    job = find(stack.broker.url, request_id)
    assert (job.status, job.attempt) == (Status.QUEUED, 0)


def test_requests_wait_while_the_disk_is_almost_full(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = submit(redis_url)
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url, min_free_mib=0),
        connect_gateway(redis_url),
    )
    bodies: list[dict[str, Any]] = []
    states: list[str] = []

    def nap(_seconds: float) -> None:
        eventually(lambda: redis.zcard(keyspace.WORKERS) == 1)
        with pytest.raises(NoWorkerError):
            ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, needs_worker=True))
        [ready] = call_app(app, httpx2.Request("GET", "http://test/readyz"))
        bodies.append(ready.json())
        states.extend(worker.state for worker in fleet(redis))
        assert find(redis_url, request_id).status is Status.QUEUED
        monkeypatch.setattr(outputs, "_min_free_mib", 1)

    monkeypatch.setattr(EngineWorker, "_install_signal_handlers", lambda _: None)
    monkeypatch.setattr(rq_worker, "sleep", nap)
    settings = WorkerSettings(data_dir=tmp_path, redis_url=redis_url)
    outputs = LocalOutputs(settings.outputs_dir, min_free_mib=1 << 40)
    outputs.check()
    assert not work("ann", Broken(0), Moderation(), outputs, settings)
    assert find(redis_url, request_id).status is Status.PROCESSING
    [body] = bodies
    assert (body["status"], body["live_workers"], states) == ("no worker", 0, ["paused"])
    assert body["workers"] == "paused"
    [missing] = body["missing"]
    assert "MiB free" in missing
    assert "make room" in missing
