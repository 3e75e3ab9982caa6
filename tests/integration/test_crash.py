"""Workers that are killed, paused, poisoned and hung: every request still ends once."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stack import Stack, eventually

DETECTION_SECONDS = 20
"""Promised, from the death of a worker to the end of its request by another one, run included."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway; a step takes a tenth of a second."""
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.1") as stack:
        stack.start_gateway()
        yield stack


def submit(stack: Stack, key: str, prompt: str = "a pond", steps: int = 20) -> str:
    answer = stack.http(key).post(
        "/v2/mochi-1", json={"prompt": prompt, "steps": steps, "frames": 1}
    )
    assert answer.is_success
    return str(answer.json()["request_id"])


def result(stack: Stack, key: str, request_id: str) -> dict[str, Any]:
    """The body when the request has ended, and nothing before."""
    body: dict[str, Any] = stack.http(key).get(f"/v2/requests/{request_id}").json()
    return body if body["status"] in {"COMPLETED", "FAILED"} else {}


def retries(body: dict[str, Any]) -> int:
    return int(body["metrics"].get("retry_count", 0))


def worker_of(
    stack: Stack, request_id: str, workers: list[subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    """The process that runs the request, once it is well into it."""
    eventually(lambda: int(stack.record(request_id).get("step", 0)) >= 5)
    name = stack.record(request_id)["worker"]
    return next(worker for worker in workers if f"-{worker.pid}-" in name)


FAKE = {
    "model": "fake engine",
    "device": "CPU",
    "precision": "none",
    "profile": "",
    "lossy": [],
}
"""What /version says of a worker with the fake engine."""


def engines(stack: Stack) -> list[dict[str, Any]]:
    answer = stack.http().get("/version")
    assert answer.status_code == 200
    engines: list[dict[str, Any]] = answer.json()["engines"]
    return engines


def test_version_names_the_engines_of_workers_while_they_are_alive(stack: Stack) -> None:
    assert engines(stack) == []
    told, killed = (stack.start_worker(lease_seconds="2") for _ in range(2))
    assert engines(stack) == [FAKE, FAKE]
    stack.redis.delete("mochi:workers")
    assert eventually(lambda: engines(stack) == [FAKE, FAKE])
    told.terminate()
    assert told.wait(30) == 0
    assert engines(stack) == [FAKE]
    killed.kill()
    eventually(lambda: engines(stack) == [], seconds=10)


def test_version_answers_without_the_broker(stack: Stack) -> None:
    worker = stack.start_worker()
    client = stack.http()
    whole = client.get("/version").json()
    stack.broker.stop()
    assert client.get("/version").json() == whole | {"engines": []}
    stack.broker.start()
    assert eventually(lambda: client.get("/version").json()["engines"]) == whole["engines"]
    assert worker.poll() is None


def test_a_killed_workers_request_is_finished_by_another_and_seen_once(stack: Stack) -> None:
    workers = [stack.start_worker() for _ in range(2)]
    key = stack.key()
    request_id = submit(stack, key)
    worker_of(stack, request_id, workers).kill()
    killed = time.monotonic()
    body = eventually(lambda: result(stack, key, request_id))
    seconds = time.monotonic() - killed
    print(f"finished {seconds:.1f} s after the kill")  # noqa: T201 (the figure of this test)
    assert seconds <= DETECTION_SECONDS
    assert body["status"] == "COMPLETED"
    assert retries(body) == 1
    assert stack.record(request_id)["attempt"] == "2"
    assert stack.outputs() == [stack.record(request_id)["file_name"]]
    assert stack.redis.keys("rq:job:*") == []


def test_a_paused_worker_writes_no_second_result(stack: Stack) -> None:
    workers = [stack.start_worker(lease_seconds="2") for _ in range(2)]
    key = stack.key()
    request_id = submit(stack, key)
    zombie = worker_of(stack, request_id, workers)
    zombie.send_signal(signal.SIGSTOP)
    body = eventually(lambda: result(stack, key, request_id))
    record = stack.record(request_id)
    zombie.send_signal(signal.SIGCONT)
    eventually(lambda: "run.lost" in stack.log_of(zombie) or "run.late" in stack.log_of(zombie))
    assert body["status"] == "COMPLETED"
    assert stack.record(request_id) == record
    assert result(stack, key, request_id) == body
    assert stack.outputs() == [record["file_name"]]
    next_one = submit(stack, key, steps=10)
    assert eventually(lambda: result(stack, key, next_one))["status"] == "COMPLETED"
    assert zombie.poll() is None


def test_a_poisoned_prompt_ends_failed_after_three_workers_and_harms_no_other(
    stack: Stack,
) -> None:
    def start() -> subprocess.Popen[bytes]:
        return stack.start_worker(lease_seconds="2")

    workers = [start()]
    key = stack.key()
    poison = submit(stack, key, "fake:crash", steps=10)
    others = [submit(stack, key, steps=10) for _ in range(3)]
    deaths = 0
    deadline = time.monotonic() + 60
    while not result(stack, key, poison) and time.monotonic() < deadline:
        if workers[-1].poll() is not None:
            deaths += 1
            workers.append(start())
        time.sleep(0.05)
    body = result(stack, key, poison)
    assert (body["status"], body["error_code"]) == ("FAILED", "worker_lost")
    assert "died, on each of 3 attempts" in body["error"]
    assert deaths == 3
    for request_id in others:
        done = eventually(lambda: result(stack, key, request_id))  # noqa: B023
        assert (done["status"], retries(done)) == ("COMPLETED", 0)


def test_a_worker_that_hangs_ends_itself_and_its_request_is_tried_again_twice(stack: Stack) -> None:
    key = stack.key()
    request_id = submit(stack, key, "fake:hang", steps=10)
    impatient = {"MOCHI_LEASE_SECONDS": "2", "MOCHI_STALL_SECONDS": "1"}
    for attempt in ("1", "2", "3"):
        hung = stack.start("worker", environ=impatient)
        assert hung.wait(20) == 75
        assert "worker.hung" in stack.log_of(hung)
        assert stack.record(request_id)["attempt"] == attempt
    stack.start_worker(lease_seconds="2")
    next_one = submit(stack, key, steps=10)
    assert eventually(lambda: result(stack, key, request_id))["error_code"] == "worker_lost"
    assert eventually(lambda: result(stack, key, next_one))["status"] == "COMPLETED"


def test_a_result_waits_for_a_broker_that_is_away(stack: Stack) -> None:
    """For longer than a lease, and longer than a step may take."""
    workers = [stack.start_worker(lease_seconds="2", stall_seconds="1") for _ in range(2)]
    key = stack.key()
    request_id = submit(stack, key)
    worker_of(stack, request_id, workers)
    server = psutil.Process(stack.redis.info("server")["process_id"])
    server.suspend()
    time.sleep(5)
    server.resume()
    body = eventually(lambda: result(stack, key, request_id))
    assert (body["status"], retries(body)) == ("COMPLETED", 0)
    assert [worker.poll() for worker in workers] == [None, None]
    assert stack.outputs() == [stack.record(request_id)["file_name"]]


def test_a_killed_broker_loses_nothing_that_was_accepted(stack: Stack) -> None:
    worker = stack.start_worker()
    key = stack.key()
    ids = [submit(stack, key, steps=10) for _ in range(3)]
    worker_of(stack, ids[0], [worker])
    psutil.Process(stack.redis.info("server")["process_id"]).kill()
    eventually(lambda: not stack.broker.is_alive())
    time.sleep(1)
    stack.broker.start()
    for request_id in ids:
        body = eventually(lambda: stack.broker.is_alive() and result(stack, key, request_id))  # noqa: B023
        assert isinstance(body, dict)
        assert (body["status"], retries(body)) == ("COMPLETED", 0)
    assert worker.poll() is None
    assert len(stack.outputs()) == len(ids)
