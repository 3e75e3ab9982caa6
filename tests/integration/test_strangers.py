"""What people without a key may cost: neither memory, nor connections, nor anybody's answers."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import psutil
import pytest

from server.protocol import HEAD_SECONDS, MOST_HEAD_BYTES
from tests.stack import Stack
from tests.wire import connect, read_answer, refusal

MEGABYTE = 1 << 20
STRANGERS = 150
"""More than the broker's client has connections."""


def test_headers_over_the_limit_are_400(server: Stack) -> None:
    for header in (b"x-long: " + b"x" * MOST_HEAD_BYTES, b"x: y\r\n" * MOST_HEAD_BYTES):
        with connect(server.url) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n" + header + b"\r\n\r\n")
            assert "too large" in refusal(read_answer(connection), 400)


def test_a_header_without_end_is_cut_off_and_takes_no_memory(server: Stack) -> None:
    gateway = psutil.Process(server.processes[0].pid)
    before = gateway.memory_info().rss
    with connect(server.url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\nx-long: ")
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            connection.sendall(b"x" * (64 * MEGABYTE))
    assert gateway.memory_info().rss - before < 16 * MEGABYTE


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6",
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: what",
        b"GET /healthz HTTP/9.9\r\nhost: h",
        b"NONSENSE",
    ],
)
def test_what_is_no_http_is_400_in_json(server: Stack, head: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(head + b"\r\n\r\n")
        refusal(read_answer(connection), 400)


def test_requests_that_never_become_whole_are_closed(server: Stack) -> None:
    starts = (
        b"",
        b"GET /healthz HTTP/1.1\r\nhost: he",
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        b"x-api-key: %b\r\ncontent-length: 9\r\n\r\n{" % server.key().encode(),
    )
    connections = [connect(server.url) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.settimeout(3 * HEAD_SECONDS)
        connection.sendall(start)
    assert [_rest(connection).partition(b"\r\n")[0] for connection in connections] == [
        b"",
        b"",
        b"HTTP/1.1 400 Bad Request",
    ]


def test_requests_sent_in_one_go_are_all_answered(server: Stack) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n"
    count = 2 * MOST_HEAD_BYTES // len(whole)
    with connect(server.url) as connection:
        connection.sendall(whole * count + whole[:-2])
        connection.sendall(whole[-2:])
        received = b""
        while received.count(b"HTTP/1.1 200") <= count:
            received += connection.recv(65_536)
    assert b" 400 " not in received


def test_a_stray_byte_after_an_answer_does_not_keep_a_connection(server: Stack) -> None:
    with connect(server.url) as connection:
        connection.settimeout(3 * HEAD_SECONDS)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        assert read_answer(connection).is_success
        connection.sendall(b"\r\n")
        assert not _rest(connection)


def test_many_strangers_take_no_answer_from_those_with_a_key(server: Stack) -> None:
    done = threading.Event()
    statuses: set[int] = set()

    def pester() -> None:
        with httpx.Client(headers={"x-api-key": "mochi_bad"}, timeout=60) as client:
            while not done.is_set():
                for path in ("/v1/get-user-credits", "/readyz"):
                    statuses.add(client.get(server.url + path).status_code)

    strangers = [threading.Thread(target=pester) for _ in range(STRANGERS)]
    for stranger in strangers:
        stranger.start()
    time.sleep(1)
    friend = server.http()
    answers = {friend.get("/v1/get-user-credits").status_code for _ in range(20)}
    done.set()
    for stranger in strangers:
        stranger.join()
    assert answers == {200}
    assert statuses == {401, 200}


def _rest(connection: socket.socket) -> bytes:
    received = b""
    with connection:
        while chunk := connection.recv(65_536):
            received += chunk
    return received
