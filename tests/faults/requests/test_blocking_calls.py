"""F24, and F21 on v1: what becomes of a blocking call's request when either end goes away."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import clear, stack_with_gateway
from tests.support.stack import Stack, eventually
from worker.store import keyspace

LONG = 50
"""Steps: two and a half seconds."""
BODY: dict[str, Any] = {"prompt": "a pond", "steps": LONG, "frames": 1}

Figure = Callable[[str], None]


@pytest.fixture(scope="module")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Its first gateway is not called, so that tests may end those that are."""
    with stack_with_gateway(tmp_path_factory.mktemp("blocking")) as stack:
        yield stack


@pytest.fixture
def stack(_stack: Stack) -> Iterator[Stack]:
    """A gateway, another one that is called, and a worker."""
    _stack.start_worker()
    first = _stack.url
    _stack.start_gateway(drain_seconds="1")
    yield _stack
    clear(_stack)
    _stack.url = first


@pytest.fixture
def client(stack: Stack) -> Client:
    return Client(stack)


class Blocking:
    """A blocking call that waits for its answer, with its request in a worker."""

    def __init__(self, client: Client, headers: dict[str, str]) -> None:
        before = records(client.stack)
        url = client.http.base_url
        self.connection = HTTPConnection(url.host, url.port or 0, timeout=60)
        self.connection.request(
            "POST",
            "/v1/mochi-1",
            json.dumps(BODY),
            {"content-type": "application/json", "x-api-key": client.key} | headers,
        )
        (self.request_id,) = eventually(lambda: records(client.stack) - before)
        client.running(self.request_id)


def records(stack: Stack) -> set[str]:
    """The ids of all requests."""
    prefix = keyspace.record("")
    return {str(key).removeprefix(prefix) for key in stack.redis.scan_iter(f"{prefix}*")}


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-pond"}], ids=["plain", "keyed"])
def test_f24_a_gateway_killed_in_a_blocking_call_loses_no_request(
    stack: Stack, client: Client, headers: dict[str, str], figure: Figure
) -> None:
    call = Blocking(client, headers)
    gateway = stack.processes[-1]
    gateway.kill()
    assert gateway.wait(30) == -signal.SIGKILL
    with pytest.raises(ConnectionError):
        call.connection.getresponse()
    assert stack.record(call.request_id)["status"] == "PROCESSING"
    stack.start_gateway()
    another = stack.http(client.key)
    if headers:  # that is how a client finds its request again
        began = time.monotonic()
        submitted = another.post("/v2/mochi-1", json=BODY, headers=headers)
        assert submitted.json()["request_id"] == call.request_id
        again = another.post("/v1/mochi-1", json=BODY, headers=headers)
        figure(f"F24: the video came {time.monotonic() - began:.1f} s after it was asked for again")
        assert again.is_success
        assert again.headers["x-request-id"] == call.request_id
        assert again.headers["Idempotency-Replayed"] == "true"
        assert len(again.content) == int(stack.record(call.request_id)["file_size"])
    result = f"/v2/requests/{call.request_id}"
    eventually(lambda: another.get(result).json()["status"] == "COMPLETED")
    assert records(stack) == {call.request_id}
    assert stack.record(call.request_id)["attempt"] == "1"
    assert "cancelled" not in stack.record(call.request_id)


def test_f21_a_client_that_hangs_up_cancels_its_blocking_call(stack: Stack, client: Client) -> None:
    call = Blocking(client, {})
    call.connection.close()
    ended = eventually(lambda: client.result(call.request_id))
    assert ended["error_code"] == "cancelled"
    assert stack.outputs() == []


def test_f21_a_client_with_an_idempotency_key_may_hang_up_and_come_back(
    stack: Stack, client: Client
) -> None:
    key = {"Idempotency-Key": "a-pond"}
    call = Blocking(client, key)
    call.connection.close()
    again = client.http.post("/v1/mochi-1", json=BODY, headers=key)
    assert (again.status_code, again.headers["x-request-id"]) == (200, call.request_id)
    client.assert_made_once(call.request_id)


@pytest.mark.parametrize("signals", [1, 2])
def test_f24_a_gateway_that_is_told_to_stop_cancels_no_blocking_call(
    stack: Stack, client: Client, signals: int
) -> None:
    call = Blocking(client, {})
    gateway = stack.processes[-1]
    for _ in range(signals):
        gateway.terminate()
        time.sleep(0.3)
    assert gateway.wait(30) == 0
    if signals == 1:  # it had its grace
        answer = call.connection.getresponse()
        assert (answer.status, json.load(answer)["request_id"]) == (504, call.request_id)
    call.connection.close()
    eventually(lambda: stack.record(call.request_id)["status"] == "COMPLETED")
    assert "cancelled" not in stack.record(call.request_id)
