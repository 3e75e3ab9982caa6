"""Attacks on the wire: requests within requests, forged senders, text that breaks out of a line."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from server.keys.throttle import MOST_BAD_KEYS
from server.transport.connection.protocol import MOST_HEAD_BYTES
from tests.support.services.receiver import INSIDE, trap
from tests.support.stack import Stack, eventually
from tests.support.wire import (
    another_address,
    another_gateway,
    connect,
    read_rest,
    refusal,
    stranger,
)
from worker.store.webhooks.deliveries import all_deliveries

POND: dict[str, Any] = {"prompt": "a pond at night", "frames": 1, "steps": 10}
BALANCE = "/v1/get-user-credits"

# Requests within requests

ONE_TOO_MANY = {
    "length and chunks": "content-length: 5\r\ntransfer-encoding: chunked",
    "chunks and length": "transfer-encoding: chunked\r\ncontent-length: 5",
    "two lengths": "content-length: 0\r\ncontent-length: 6",
    "two equal lengths": "content-length: 0\r\ncontent-length: 0",
    "list of lengths": "content-length: 0, 0",
    "length with a sign": "content-length: +0",
    "negative length": "content-length: -1",
    "hexadecimal length": "content-length: 0x0",
    "no length": "content-length:",
    "endless length": "content-length: 99999999999999999999999",
    "space before the colon": "content-length : 0",
    "unknown coding": "transfer-encoding: what",
    "almost chunked": "transfer-encoding: xchunked",
    "identity": "transfer-encoding: identity",
    "chunked in between": "transfer-encoding: chunked, identity",
    "chunked twice": "transfer-encoding: chunked, chunked",
    "two codings": "transfer-encoding: chunked\r\ntransfer-encoding: identity",
    "space before the other colon": "transfer-encoding : chunked",
    "vertical tab": "transfer-encoding: \x0bchunked",
    "quoted": 'transfer-encoding: "chunked"',
    "folded": "transfer-encoding:\r\n chunked",
    "folded behind another": "x: y\r\n content-length: 0",
    "bare line feed": "x: y\ntransfer-encoding: chunked",
    "bare carriage return": "x: y\rtransfer-encoding: chunked",
    "NUL in a value": "x: y\0z",
    "NUL in a name": "x\0y: z",
    "escape in a value": "x: \x1b[2J",
    "space in a name": "x y: z",
    "no colon": "nonsense",
    "200 kB": "x: " + "y" * 200_000,
}
assert MOST_HEAD_BYTES < 200_000


@pytest.mark.parametrize("prefix", ["", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"], ids=repr)
@pytest.mark.parametrize("header", ONE_TOO_MANY.values(), ids=ONE_TOO_MANY.keys())
def test_a_request_of_unclear_length_is_400_and_hides_no_other(
    server: Stack, header: str, prefix: str
) -> None:
    key = server.key()
    hidden = _post("idempotency-key: hidden\r\ncontent-length: 19", key) + '{"prompt":"hidden"}'
    with connect(server.url) as connection:
        with suppress(ConnectionError):  # refused before all of it was sent
            connection.sendall((_post(header, key) + prefix + hidden).encode())
        received = read_rest(connection)
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
    _assert_was_not_run(server, key)


def test_nothing_is_run_after_a_last_request(server: Stack) -> None:
    key = server.key()
    last = f"GET {BALANCE} HTTP/1.1\r\nhost: h\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n"
    hidden = _post("idempotency-key: hidden\r\ncontent-length: 19", key) + '{"prompt":"hidden"}'
    with connect(server.url) as connection:
        connection.sendall((last + hidden).encode())
        assert read_rest(connection).count(b"HTTP/1.1 ") == 1
    _assert_was_not_run(server, key)


def test_without_a_host_nothing_is_answered_but_probes(server: Stack) -> None:
    with connect(server.url) as connection:
        connection.sendall(f"GET {BALANCE} HTTP/1.1\r\nconnection: close\r\n\r\n".encode())
        assert read_rest(connection).startswith(b"HTTP/1.1 400 ")


def _post(header: str, key: str) -> str:
    return (
        f"POST /v2/mochi-1 HTTP/1.1\r\nhost: h\r\nx-api-key: {key}\r\n"
        f"content-type: application/json\r\n{header}\r\n\r\n"
    )


def _assert_was_not_run(server: Stack, key: str) -> None:
    """The same idempotency key is new."""
    answer = server.http(key).post("/v2/mochi-1", json=POND, headers={"idempotency-key": "hidden"})
    assert answer.status_code == 200
    assert "idempotency-replayed" not in answer.headers


# Forged senders


def guess(client: httpx2.Client, number: int, **headers: str) -> int:
    """The status that a bad key gets."""
    answer = client.get(BALANCE, headers={"x-api-key": f"mochi_bad{number}", **headers})
    return answer.status_code


def test_a_guesser_is_told_to_wait_and_clients_with_a_good_key_continue(server: Stack) -> None:
    good, new = server.key(), server.key()
    with stranger(server) as client:
        assert client.get(BALANCE, headers={"x-api-key": good}).is_success
        assert {guess(client, number) for number in range(MOST_BAD_KEYS)} == {401}
        answer = client.get(BALANCE, headers={"x-api-key": "mochi_worse"})
        assert "Too many bad API keys" in refusal(answer, 429)
        wait = int(answer.headers["retry-after"])
        reset = datetime.fromisoformat(answer.headers["x-rate-limit-reset-at-utc"])
        assert 0 < wait <= 60
        assert abs((reset - datetime.now(UTC)).total_seconds() - wait) < 5
        assert client.get(BALANCE, headers={"x-api-key": good}).is_success
        assert client.get(BALANCE).status_code == 401  # no key is no guess
        assert client.get("/readyz").is_success
        assert client.get(BALANCE, headers={"x-api-key": new}).is_success


def test_forged_forwarded_headers_do_not_change_the_rate_limit_of_an_address(server: Stack) -> None:
    victim = another_address()
    with stranger(server) as client:
        for number in range(MOST_BAD_KEYS):
            forged = f"10.0.0.{number}"
            headers = {"x-forwarded-for": forged, "forwarded": f"for={forged}", "x-real-ip": forged}
            assert guess(client, number, **headers) == 401
        assert guess(client, MOST_BAD_KEYS, **{"x-forwarded-for": victim}) == 429
    with stranger(server, victim) as client:
        assert guess(client, 0) == 401


@pytest.fixture(scope="module")
def proxy() -> str:
    """The address of a proxy that is trusted."""
    return another_address()


@pytest.fixture(scope="module")
def proxied(server: Stack, proxy: str) -> str:
    """The URL of a gateway behind it, and behind one of a network."""
    return another_gateway(server, trusted_proxies=f"{proxy}, fd00::/8")


@pytest.fixture
def through_proxy(server: Stack, proxied: str, proxy: str) -> Iterator[httpx2.Client]:
    with stranger(server, proxy) as client:
        client.base_url = proxied
        yield client


def test_a_trusted_proxy_says_who_calls_and_how(
    server: Stack, through_proxy: httpx2.Client
) -> None:
    headers = {"x-api-key": server.key(), "x-forwarded-proto": "https", "host": "videos.example"}
    answer = through_proxy.post("/v2/mochi-1", json=POND, headers=headers)
    assert answer.json()["status_url"].startswith("https://videos.example/v2/requests/")
    assert "strict-transport-security" in answer.headers


def test_forwarded_headers_from_an_untrusted_proxy_are_ignored(server: Stack, proxied: str) -> None:
    headers = {"x-api-key": server.key(), "x-forwarded-proto": "https"}
    with stranger(server) as client:
        answer = client.post(f"{proxied}/v2/mochi-1", json=POND, headers=headers)
        assert answer.json()["status_url"].startswith(f"{proxied}/v2/requests/")
        assert "strict-transport-security" not in answer.headers
        for number in range(MOST_BAD_KEYS + 1):
            status = client.get(
                proxied + BALANCE,
                headers={"x-api-key": f"bad{number}", "x-forwarded-for": f"10.1.0.{number}"},
            ).status_code
        assert status == 429


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="a machine without IPv6")
def test_an_ipv4_proxy_is_trusted_by_a_gateway_that_listens_to_ipv6_as_well(
    server: Stack,
) -> None:
    url = another_gateway(server, host="::", trusted_proxies="127.0.0.1")
    assert url.startswith("http://[::]:")
    headers = {"x-api-key": server.key(), "x-forwarded-proto": "https"}
    own = url.replace("[::]", "127.0.0.1")
    answer = httpx2.post(f"{own}/v2/mochi-1", json=POND, headers=headers)
    assert answer.json()["status_url"].startswith("https://")


def test_behind_a_trusted_proxy_the_address_that_the_proxy_saw_counts(
    through_proxy: httpx2.Client,
) -> None:
    for number in range(MOST_BAD_KEYS):
        # What the client sent, the client's address, and a second trusted proxy.
        forwarded = {"x-forwarded-for": f"10.2.0.{number}, 198.51.100.7, fd00::1"}
        assert guess(through_proxy, number, **forwarded) == 401
    forwarded = {"x-forwarded-for": "10.2.1.1, 198.51.100.7"}
    assert guess(through_proxy, MOST_BAD_KEYS, **forwarded) == 429
    assert guess(through_proxy, 0, **{"x-forwarded-for": "198.51.100.7, 198.51.100.8"}) == 401
    assert guess(through_proxy, 0, **{"x-forwarded-for": "10.2.0.1"}) == 401


# Calls from within


def test_no_internal_address_is_called(server: Stack, figure: Callable[[str], None]) -> None:
    """Neither after a refused submit, nor for a name that resolves to an internal address."""
    client = server.http()
    names = ["localhost.localdomain", "ip6-localhost"]
    with trap() as (port, seen):
        for host in INSIDE:
            body = POND | {"webhook_url": f"http://{host}:{port}/"}
            answer = client.post("/v2/mochi-1", json=body)
            assert "`webhook_url` must" in refusal(answer, 400)
        ids = []
        for name in names:
            body = POND | {"webhook_url": f"http://{name}:{port}/"}
            ids.append(client.post("/v2/mochi-1", json=body).json()["request_id"])

        def logs() -> list[str]:
            found = [each for each in all_deliveries(server.redis) if each.request_id in ids]
            return [each.log[0][1] for each in found if each.log]

        eventually(lambda: len(logs()) == len(names))
        assert set(logs()) <= {"the address is not public", "no such host"}
        assert seen() == 0
    figure(f"A10: {len(INSIDE)} URLs that lead inside, and {len(names)} names: 0 connections")


# Text that breaks out of its line

ODD = ["\r\nset-cookie: a=b", "\n", "\r", "\x1b[2J", "\0", "\x85", "\u2028", "\u2029", "\x7f",
       '\n{"event": "evil", "level": "info"}', "\u202e", "%0d%0aset-cookie: a=b"]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_odd_text_leaves_neither_its_header_nor_its_line_of_the_log(
    server: Stack, odd: str
) -> None:
    key = server.key()
    quoted, raw = quote(odd, safe="").encode(), odd.encode()
    requests = [
        b"GET /%b HTTP/1.1\r\nhost: h\r\nx-api-key: K" % quoted,
        b"GET /%b HTTP/1.1\r\nhost: h\r\nx-api-key: K" % raw,
        b"GET /v2/requests/%b/status HTTP/1.1\r\nhost: h\r\nx-api-key: K" % quoted,
        b"GET /v2/videos/1.mp4?signature=%b HTTP/1.1\r\nhost: h" % quoted,
        b"GET /healthz?%b HTTP/1.1\r\nhost: h" % raw,
        b"GET /nowhere HTTP/1.1\r\nhost: h\r\nx-odd: %b\r\nx-api-key: K" % raw,
        b"GET /nowhere HTTP/1.1\r\nhost: h\r\nx%b: y\r\nx-api-key: K" % raw,
        b"GET /nowhere HTTP/1.1\r\nhost: h%b\r\nx-api-key: K" % raw,
        b"GET /nowhere HTTP/1.1\r\nhost: h\r\nx-api-key: K%b" % raw,
        b"G%b /nowhere HTTP/1.1\r\nhost: h\r\nx-api-key: K" % raw,
        _post(f"idempotency-key: 1{odd}\r\ncontent-length: 2", "K").removesuffix("\r\n\r\n")
        .encode() + b"\r\n\r\n{}",
    ]  # fmt: skip
    for request in requests:
        ending = b"" if b"\r\n\r\n" in request else b"\r\nconnection: close\r\n\r\n"
        with connect(server.url) as connection:
            connection.sendall(request.replace(b"K", key.encode()) + ending)
            connection.settimeout(30)
            head = read_rest(connection).partition(b"\r\n\r\n")[0]
        assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200 ", b"HTTP/1.1 307 ")), head
        assert b"set-cookie" not in head.lower()
        assert head.isascii()
        assert not set(head) & ({*range(32), 127} - {13, 10})
    _assert_one_event_a_line(server.log_of(server.processes[0]))


def test_odd_names_of_parameters_leave_neither_their_header_nor_their_line(server: Stack) -> None:
    answer = server.http().post("/v2/mochi-1", json=POND | dict.fromkeys(ODD, 1))
    assert answer.is_success
    assert answer.headers["x-ignored-parameters"].isprintable()
    assert "set-cookie" not in answer.headers
    _assert_one_event_a_line(server.log_of(server.processes[0]))


def _assert_one_event_a_line(log: str) -> None:
    lines = log.splitlines()  # also at what only Unicode takes for the end of a line
    assert len(lines) > 1
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["event"] != "evil"


def test_odd_text_does_nothing_to_a_terminal_either() -> None:
    ours, theirs = pty.openpty()
    program = (
        "import structlog; from worker.process.logs import configure_logs; configure_logs(); "
        f"structlog.get_logger().info('http.refused', path={''.join(ODD)!r})"
    )
    try:
        subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "http.refused" in shown
    assert "\x1b[2J" not in shown
    assert not {"\0", "\x85", "\u2028", "\u2029", "\u202e", "\x7f"} & set(shown)
    assert len(shown.splitlines()) == 1
