"""One request can be followed by its id, from the gateway to the engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from models.mock.scenario import SCENARIO
from tests.support.stack import Stack, eventually
from tests.support.wire import connect, read_rest
from worker.process.logs import MOST_LINES

POND = {"prompt": "a pond at night", "frames": 1, "steps": 10}
FAILS = {SCENARIO: "fail:the lens is dirty"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("logs"), engine="fake", fake_step_seconds="0.01") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def lines(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    """All that any process has said of a request; every line is JSON."""
    entries = [json.loads(line) for line in stack.logs().splitlines()]
    return [entry for entry in entries if entry.get("request_id") == request_id]


def submitted(stack: Stack, **body: Any) -> str:
    """The id of a request that has ended."""
    client = stack.http()
    request_id = str(client.post("/v2/mochi-1", json=POND | body).json()["request_id"])
    eventually(lambda: client.get(f"/v2/requests/{request_id}").json()["metrics"])
    return request_id


def test_a_request_is_followed_by_its_id_through_gateway_and_worker(stack: Stack) -> None:
    request_id = submitted(stack)
    told = eventually(
        lambda: (found := lines(stack, request_id))[-1]["event"] == "run.completed" and found
    )
    assert [entry["event"] for entry in told] == [
        *("request.accepted", "run.started", "run.encoded", "run.completed"),
    ]
    accepted, *run = told
    assert (accepted["frames"], accepted["steps"]) == (1, 10)
    assert accepted["key_id"] == stack.record(request_id)["owner"] == run[0]["key_id"]
    worker = stack.record(request_id)["worker"]
    assert {(entry["worker"], entry["attempt"]) for entry in run} == {(worker, 1)}


def test_a_failed_run_says_why_and_the_next_has_another_id(stack: Stack) -> None:
    first, second = submitted(stack, **FAILS), submitted(stack)
    (failed,) = [entry for entry in lines(stack, first) if entry["event"] == "run.failed"]
    assert failed["reason"] == "the lens is dirty"
    assert {UUID(entry["request_id"]) for entry in lines(stack, second)} == {UUID(second)}


def test_a_replay_and_a_refusal_name_the_request(stack: Stack) -> None:
    client = stack.http()
    asked = [
        client.post("/v2/mochi-1", json=POND, headers={"idempotency-key": "again"}).json()
        for _ in range(2)
    ]
    request_id = asked[0]["request_id"]
    stack.http().get(f"/v2/requests/{request_id}")  # another's
    events = [entry["event"] for entry in lines(stack, request_id)]
    assert events.count("request.accepted") == events.count("request.replayed") == 1
    assert events.count("http.refused") == 1


def test_who_cancels_is_told(stack: Stack) -> None:
    client = stack.http()
    wanted = client.post("/v2/mochi-1", json=POND | {SCENARIO: "slow:60"})
    request_id = wanted.json()["request_id"]
    client.delete(f"/v2/requests/{request_id}")
    (told,) = [entry for entry in lines(stack, request_id) if entry["event"] == "request.cancelled"]
    assert told["key_id"] == stack.record(request_id)["owner"]
    assert told["outcome"] == "requested"
    failed = eventually(lambda: client.get(f"/v2/requests/{request_id}"))
    assert eventually(lambda: client.get(f"/v2/requests/{request_id}").status_code == 422)
    assert failed
    assert "http.refused" not in [entry["event"] for entry in lines(stack, request_id)]


def test_refusals_without_a_key_write_a_bounded_log(stack: Stack) -> None:
    """Some 8 MB of paths in one go: what is left out is counted."""
    request = b"GET /v2/requests/%b HTTP/1.1\r\nhost: here\r\n\r\n" % (b"x" * 20_000)
    before = len(stack.log_of(stack.processes[0]))
    count = 400
    with connect(stack.url) as connection:
        sender = threading.Thread(target=connection.sendall, args=(request * count,))
        sender.start()
        received = b""
        while received.count(b"HTTP/1.1 401") < count:
            received += connection.recv(65_536)
        sender.join()
    time.sleep(1)  # into another second, in which the rest is counted
    stack.http("bad").get("/v1/get-user-credits")
    log = stack.log_of(stack.processes[0])[before:]
    logged = [json.loads(line) for line in log.splitlines()]
    assert sum(line.get("count", 1) for line in logged) == count + 1
    assert len(log) < 700 * len(logged) < 700 * count / 2


def test_invalid_http_writes_a_bounded_log(stack: Stack) -> None:
    """Each ends its connection. What is left out is counted."""

    def send_invalid() -> None:
        with connect(stack.url) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            read_rest(connection)

    before = len(stack.log_of(stack.processes[0]))
    began = time.monotonic()
    count = 400
    for _ in range(count):
        send_invalid()
    seconds = time.monotonic() - began
    time.sleep(1)  # into another second, in which the rest is counted
    send_invalid()
    log = stack.log_of(stack.processes[0])[before:]
    logged = [json.loads(line) for line in log.splitlines()]
    assert sum(line.get("count", 1) for line in logged) == count + 1
    assert len(logged) <= MOST_LINES * (seconds + 2) + 4


def test_a_gateway_says_that_it_stops_and_a_worker_gives_back_by_name(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.5", drain_seconds="0") as stack:
        stack.start_gateway()
        worker = stack.start_worker()
        client = stack.http()
        request_id = client.post("/v2/mochi-1", json=POND).json()["request_id"]
        eventually(lambda: stack.record(request_id)["status"] == "PROCESSING")
        name = stack.record(request_id)["worker"]
        worker.terminate()
        worker.wait(30)
        (given,) = [entry for entry in lines(stack, request_id) if entry["event"] == "run.requeued"]
        assert (given["worker"], given["attempt"]) == (name, 1)
        stack.processes[0].terminate()
        stack.processes[0].wait(30)
        assert '"event": "gateway.stopping"' in stack.logs()
