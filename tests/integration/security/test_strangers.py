"""What people without a key may cost: neither memory, nor connections, nor anybody's answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import quantiles

import httpx2
import psutil
import pytest

from server.transport.connection.listener import HEAD_SECONDS
from server.transport.connection.protocol import MOST_HEAD_BYTES
from tests.support.services.certificates import Certificate
from tests.support.stack import Stack, eventually
from tests.support.wire import (
    LAST_CHUNK,
    another_gateway,
    assert_trailers_are_dropped,
    chunked,
    connect,
    read_answer,
    refusal,
    stranger,
)

MEGABYTE = 1 << 20
HELD = 500
CALM_SECONDS, BUSY_SECONDS = 1.0, 4.0
ANSWERED = b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n"
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01"
"""The beginning of one."""
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


def test_bodies_that_wait_for_a_hanging_broker_hold_little_and_go_with_their_connections(
    tmp_path: Path,
) -> None:
    head = (
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: here\r\nx-api-key: bad\r\n"
        b"content-length: 1000000\r\n\r\n"
    )
    more = []
    with Stack(tmp_path, engine="fake") as stack:
        url = stack.start_gateway()
        gateway = psutil.Process(stack.processes[0].pid)
        broker = psutil.Process(int(stack.redis.info("server")["process_id"]))
        for _ in range(3):
            before = gateway.memory_info().rss
            broker.suspend()
            with ExitStack() as strangers:
                for _ in range(STRANGERS):
                    connection = strangers.enter_context(connect(url))
                    connection.setblocking(False)
                    connection.send(head + b"x" * 300_000)
                time.sleep(1)  # less than the gateway waits for its broker
            broker.resume()
            eventually(lambda: len(gateway.net_connections()) < STRANGERS)
            more.append((gateway.memory_info().rss - before) / MEGABYTE)
    # In all rounds, of 45 MB that each sends. The process keeps some of what it has freed.
    assert sum(more) < STRANGERS / 8


def test_trailers_without_end_are_cut_off_and_take_no_memory(server: Stack) -> None:
    gateway = psutil.Process(server.processes[0].pid)
    before = gateway.memory_info().rss
    for trailers in (b"x: y\r\n", b"x"):  # many, and one
        with connect(server.url) as connection:
            connection.sendall(chunked("POST /v2/mochi-1", server.key()) + LAST_CHUNK)
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
                connection.sendall(trailers * (16 * MEGABYTE // len(trailers)))
    assert gateway.memory_info().rss - before < 5 * MEGABYTE


def test_a_trailer_is_no_header(server: Stack) -> None:
    assert_trailers_are_dropped(server.url, server.key())


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


def test_five_hundred_partial_requests_are_closed_and_delay_no_other_client(
    server: Stack, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    tls = another_gateway(server, **Certificate(tmp_path / "pem").settings)
    friend = server.http()
    calm = _p99_ms(friend, CALM_SECONDS, lambda: None)
    body = (
        b"POST /v2/mochi-1 HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        b"x-api-key: %b\r\ncontent-length: 9999\r\n\r\n{" % server.key().encode()
    )
    head = b"GET /healthz HTTP/1.1\r\nhost: he"
    kinds = [
        Held(server.url, b"", b""),
        Held(server.url, head, b""),
        Held(server.url, head, b""),
        Held(server.url, head, b"", drips=True),
        Held(server.url, body, b"HTTP/1.1 400 Bad Request"),
        Held(server.url, body, b"HTTP/1.1 400 Bad Request", drips=True),
        Held(tls, b"", b""),
        Held(tls, CLIENT_HELLO, b""),
        Held(server.url, chunked("GET /healthz") + LAST_CHUNK + b"x: ", b"HTTP/1.1 200 OK"),
        Held(server.url, ANSWERED, b"HTTP/1.1 200 OK", after_answer=b"\r\n"),
    ]
    held = {_open(kind): kind for kind in islice(cycle(kinds), HELD)}
    began = time.monotonic()

    def drip() -> None:
        for connection, kind in held.items():
            if kind.drips:
                with suppress(OSError):
                    connection.send(b" ")

    busy = _p99_ms(friend, BUSY_SECONDS, drip)
    longest = _wait_until_closed(held, drip) - began
    figure(
        f"A6: {HELD} partial requests, some dripping: all closed after {longest:.1f} s; "
        f"poll p99 {calm:.1f} ms without them, {busy:.1f} ms meanwhile"
    )


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


def test_many_strangers_take_no_answer_from_those_with_a_key(server: Stack) -> None:
    done = threading.Event()
    statuses: set[tuple[str, int]] = set()

    def pester() -> None:
        # Each from an address of its own, or they would soon be told to wait.
        with stranger(server) as client:
            while not done.is_set():
                for path in ("/v1/get-user-credits", "/readyz"):
                    status = client.get(path, headers={"x-api-key": "bad"}).status_code
                    statuses.add((path, status))

    strangers = [threading.Thread(target=pester) for _ in range(STRANGERS)]
    for thread in strangers:
        thread.start()
    time.sleep(1)
    friend = server.http()
    answers = {friend.get("/v1/get-user-credits").status_code for _ in range(20)}
    done.set()
    for thread in strangers:
        thread.join()
    assert answers == {200}
    refusals = {status for path, status in statuses if path != "/readyz"}
    assert 401 in refusals
    # On a busy machine the broker may be late, and a worker with its heartbeat.
    assert refusals <= {401, 429, 502}
    assert {status for path, status in statuses if path == "/readyz"} <= {200, 503}


@dataclass(frozen=True)
class Held:
    """A connection that is held open: where, what is sent, how the answer starts.

    An idle one is none: a client may send its next request.
    """

    url: str
    start: bytes
    answer: bytes
    drips: bool = False
    after_answer: bytes = b""


def _open(kind: Held) -> socket.socket:
    connection = connect(kind.url)
    connection.sendall(kind.start)
    if kind.after_answer:
        connection.recv(1, socket.MSG_PEEK)
        connection.sendall(kind.after_answer)
    return connection


def _p99_ms(client: httpx2.Client, seconds: float, between: Callable[[], None]) -> float:
    """Of polls, one after the other. `between` is called now and then."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        between()
        for _ in range(100):
            began = time.monotonic()
            assert client.get("/v1/get-user-credits").is_success
            took.append(time.monotonic() - began)
    return 1000 * quantiles(took, n=100)[-1]


def _wait_until_closed(held: dict[socket.socket, Held], between: Callable[[], None]) -> float:
    """When the last one was; all had the right answer by then."""
    patience = time.monotonic() + 3 * HEAD_SECONDS
    for connection, kind in held.items():
        received = b""
        connection.settimeout(0.25)
        while True:
            try:
                chunk = connection.recv(65_536)
            except TimeoutError:
                assert time.monotonic() < patience, kind
                between()
                continue
            except ConnectionResetError:
                break  # what was dripped last was not read any more
            if not chunk:
                break
            received += chunk
        # What is dripped into a closed connection may take the answer with it.
        assert received.partition(b"\r\n")[0] == kind.answer or (kind.drips and not received)
        connection.close()
    return time.monotonic()
