"""Clients that end their side of the connection after the request, as `nc -N` does."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, connect, read_rest

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
SLOW = POND | {"steps": 40}
"""It still runs when the client has ended its side."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("half-close")
    with Stack(folder, engine="fake", fake_step_seconds="0.02") as stack:
        stack.start_gateway(cancel_on_disconnect="false")
        stack.start_worker()
        yield stack


def request(stack: Stack, path: str, body: object = None, *, key: str = "") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    return (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: here\r\n"
        f"x-api-key: {key or stack.key()}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode() + content


def half_closed(url: str, *requests: bytes) -> socket.socket:
    connection = connect(url)
    connection.sendall(b"".join(requests))
    connection.shutdown(socket.SHUT_WR)
    return connection


def answers(url: str, *requests: bytes) -> list[bytes]:
    """What such a client gets, until the gateway closes."""
    with half_closed(url, *requests) as connection:
        return read_rest(connection).split(b"HTTP/1.1 ")[1:]


def left_open(stack: Stack) -> list[object]:
    """The connections that a client has ended and the gateway has not."""
    found = psutil.Process(stack.processes[0].pid).net_connections("tcp")
    return [one for one in found if one.status == psutil.CONN_CLOSE_WAIT]


def test_a_client_that_ends_its_side_gets_its_answer(stack: Stack) -> None:
    client = stack.http()
    status_url = client.post("/v2/mochi-1", json=POND).json()["status_url"]
    for asked, body in ("/version", None), (urlsplit(status_url).path, None), ("/v2/mochi-1", POND):
        for _ in range(5):  # whether the end comes with the request or after it
            (answer,) = answers(
                stack.url, request(stack, asked, body, key=client.headers["x-api-key"])
            )
            assert answer.startswith(b"200 ")
            json.loads(answer.partition(b"\r\n\r\n")[2])


def test_so_does_one_that_has_sent_several_requests(stack: Stack) -> None:
    three = answers(stack.url, *[request(stack, "/version")] * 3)
    assert [answer[:4] for answer in three] == [b"200 "] * 3


def test_a_blocking_call_that_a_close_does_not_cancel_answers_with_the_video(stack: Stack) -> None:
    (answer,) = answers(stack.url, request(stack, "/v1/mochi-1", SLOW))
    head, _, video = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"200 ")
    assert f"content-length: {len(video)}".encode() in head


def test_any_other_blocking_call_is_cancelled(stack: Stack) -> None:
    other, key = another_gateway(stack), stack.key()
    (answer,) = answers(other, request(stack, "/v1/mochi-1", SLOW, key=key))
    assert answer.startswith(b"499 ")
    (video,) = stack.http(key).get("/v1/videos").json()["data"]
    ended = eventually(lambda: _error_code(stack, key, video["id"]))
    assert ended == "cancelled"


def _error_code(stack: Stack, key: str, request_id: str) -> str:
    return str(stack.http(key).get(f"/v2/requests/{request_id}").json().get("error_code", ""))


@pytest.mark.parametrize("missing", ["body", "head", "all"])
def test_a_request_that_ends_early_ends_the_connection(stack: Stack, missing: str) -> None:
    whole = request(stack, "/v2/mochi-1", POND)
    sent = {"body": whole[:-3], "head": whole[:30], "all": b""}[missing]
    assert answers(stack.url, sent) == []


def test_events_end_with_the_client(stack: Stack) -> None:
    key = stack.key()
    body = stack.http(key).post("/v2/mochi-1", json=POND | {"steps": 75}).json()
    path = f"/v2/requests/{body['request_id']}/events"
    with half_closed(stack.url, request(stack, path, key=key)) as connection:
        assert b"event: output" not in read_rest(connection)


def test_a_client_that_closes_leaves_no_connection(stack: Stack) -> None:
    client = stack.http()
    key = client.headers["x-api-key"]
    for path, body in ("/version", None), ("/v2/mochi-1", POND), ("/v1/mochi-1", POND):
        half_closed(stack.url, request(stack, path, body, key=key)).close()
    eventually(lambda: len(client.get("/v1/videos").json()["data"]) == 2)
    eventually(lambda: not left_open(stack))
