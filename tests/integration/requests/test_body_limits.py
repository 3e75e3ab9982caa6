"""Bodies over the limit, with and without a key: refused, and read no further."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import httpx2
import psutil
import pytest

from tests.support.stack import Stack
from tests.support.wire import (
    BODY_LIMIT,
    NO_KEY,
    SOON_SECONDS,
    SUBMITS,
    connect,
    read_answer,
    refusal,
)

MEGABYTE = 1 << 20


def test_a_large_body_without_a_key_is_refused_unread(
    server: Stack, figure: Callable[[str], None]
) -> None:
    gateway = psutil.Process(server.processes[0].pid)
    refusal(httpx2.post(f"{server.url}/v2/mochi-1", json={}), 401)
    before = gateway.memory_info().rss
    began = time.monotonic()
    sent = 0
    with connect(server.url) as connection:
        length = 64 * MEGABYTE
        connection.sendall(_head("/v2/mochi-1", f"content-length: {length}"))
        assert refusal(read_answer(connection), 401) == NO_KEY
        sent = _send_until_refused(connection, [b"x" * MEGABYTE] * 64)
    assert time.monotonic() - began < SOON_SECONDS
    assert sent < length
    more = gateway.memory_info().rss - before
    assert more < 5 * MEGABYTE
    figure(f"A2: 64 MB without a key: {sent / MEGABYTE:.0f} MB sent, {more / MEGABYTE:.1f} MB held")


@pytest.mark.parametrize("path", SUBMITS)
def test_a_body_over_the_limit_is_413(server: Stack, path: str) -> None:
    answer = server.http().post(path, json={"prompt": "x" * BODY_LIMIT})
    assert f"{BODY_LIMIT:,} bytes" in refusal(answer, 413)


@pytest.mark.parametrize("path", SUBMITS)
def test_a_declared_length_over_the_limit_is_refused_before_the_body(
    server: Stack, path: str
) -> None:
    with connect(server.url) as connection:
        connection.sendall(_head(path, f"content-length: {BODY_LIMIT + 1}", key=server.key()))
        assert refusal(read_answer(connection), 413)


@pytest.mark.parametrize("path", SUBMITS)
@pytest.mark.parametrize("is_known", [True, False], ids=["413", "401"])
def test_a_client_that_sends_all_of_a_refused_file_before_it_reads_gets_the_response(
    server: Stack, path: str, is_known: bool
) -> None:
    """As Node does; otherwise it gets ECONNRESET."""
    file = b" " * (3 * MEGABYTE)
    key = server.key() if is_known else "unknown"
    with connect(server.url) as connection:
        connection.sendall(_head(path, f"content-length: {len(file)}", key=key) + file)
        assert refusal(read_answer(connection), 413 if is_known else 401)
        assert connection.recv(1) == b""  # an orderly end


@pytest.mark.parametrize("path", SUBMITS)
def test_an_endless_body_is_cut_off_at_the_limit(
    server: Stack, path: str, figure: Callable[[str], None]
) -> None:
    gateway = psutil.Process(server.processes[0].pid)
    before = gateway.memory_info().rss
    chunk = b"%x\r\n%s\r\n" % (16_384, b" " * 16_384)
    with connect(server.url) as connection:
        connection.sendall(_head(path, "transfer-encoding: chunked", key=server.key()))
        for _ in range(BODY_LIMIT // 16_384 + 1):
            connection.sendall(chunk)
        assert refusal(read_answer(connection), 413)
        sent = _send_until_refused(connection, [chunk] * 4_096)
    assert sent < 64 * MEGABYTE
    more = gateway.memory_info().rss - before
    assert more < 5 * MEGABYTE
    figure(
        f"A3: an endless body on {path}: 413 at {BODY_LIMIT:,} bytes, {more / MEGABYTE:.1f} MB held"
    )


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/v2/mochi-1", "content-type: text/plain", 406),
        ("/v2/mochi-2", "x: y", 404),
        ("/v2/requests/1", "x: y", 405),
        ("/nowhere", "x: y", 404),
    ],
)
def test_no_endless_body_outlives_its_refusal(
    server: Stack, path: str, header: str, status: int
) -> None:
    head = _head(path, f"transfer-encoding: chunked\r\n{header}", key=server.key())
    if "content-type" in header:
        head = head.replace(b"content-type: application/json\r\n", b"")
    with connect(server.url) as connection:
        connection.sendall(head)
        assert refusal(read_answer(connection), status)
        chunk = b"%x\r\n%s\r\n" % (16_384, b" " * 16_384)
        assert _send_until_refused(connection, [chunk] * 4_096) < 64 * MEGABYTE


def test_a_client_that_hangs_up_within_its_body_is_logged_as_no_bug(server: Stack) -> None:
    with connect(server.url) as connection:
        connection.sendall(_head("/v2/mochi-1", "content-length: 1000", key=server.key()))
        connection.sendall(b'{"prompt": ')
    assert server.http().get("/v1/get-user-credits").is_success
    time.sleep(0.1)
    assert "http.bug" not in server.logs()


def _head(path: str, *headers: str, key: str = "") -> bytes:
    """The head of a POST whose body is still to come."""
    lines = [f"POST {path} HTTP/1.1", "host: gateway", "content-type: application/json", *headers]
    if key:
        lines.append(f"x-api-key: {key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _send_until_refused(connection: socket.socket, chunks: list[bytes]) -> int:
    """How many bytes could be sent before the other side had enough."""
    sent = 0
    for chunk in chunks:
        try:
            connection.sendall(chunk)
        except OSError:
            break
        sent += len(chunk)
    return sent
