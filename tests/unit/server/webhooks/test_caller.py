"""Calls to addresses that clients name lead to the outside, or to what is allowed."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from itertools import islice

import httpx2
import pytest

from server.webhooks import caller as outside
from server.webhooks.address_rules import Guard, is_outside
from server.webhooks.caller import LOOKUPS_OF_OWNER, Caller, NoCallError
from tests.support.services.receiver import ALLOWED, INSIDE, receiver, trap

OUTSIDE = [
    "8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "193.0.0.1", "223.255.255.255",
    "2606:4700::1111", "2a00:1450::1", "64:ff9b::8.8.8.8", "2001:4860::8888",
]  # fmt: skip
Addresses = Callable[[str, int], Awaitable[list[str]]]


def post(url: str, *, allowed: str = "", resolve: Addresses | None = None, **more: float) -> int:
    caller = Caller(Guard(allowed), resolve=resolve, **more)
    return asyncio.run(caller.post(url, b"{}", {"content-type": "application/json"}, "ann"))


def resolving(*answers: list[str]) -> Addresses:
    """A name server that says something else each time."""
    left = list(answers)

    async def resolve(_host: str, _port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def test_a10_no_url_that_leads_inside_opens_a_connection(figure: Callable[[str], None]) -> None:
    reason = "not public|no such host|Invalid IPv4"
    with trap() as (port, seen):
        for host in INSIDE:
            with pytest.raises((NoCallError, httpx2.InvalidURL), match=reason):
                post(f"http://{host}:{port}/", seconds=5)
        with pytest.raises(NoCallError):
            post(f"https://127.0.0.1:{port}/")
        for answer in (["127.0.0.1"], ["::1", "127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1"]):
            with pytest.raises(NoCallError, match="not public"):
                post(f"http://evil.example:{port}/", resolve=resolving(answer))
        assert seen() == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert seen() == 1  # it does see them
    figure(f"A10: {len(INSIDE)} hosts that are inside, and 4 names: 0 calls")


def test_a_name_is_looked_up_once_and_what_was_checked_is_called() -> None:
    """Otherwise a name server could answer the check and the connection differently."""
    with receiver() as there, trap() as (_, seen):
        port = int(there.url.rpartition(":")[2].partition("/")[0])
        url = f"http://rebound.example:{port}/"
        resolve = resolving([ALLOWED], ["127.0.0.1"])
        assert post(url, allowed=f"{ALLOWED}/32", resolve=resolve) == 200
        with pytest.raises(NoCallError, match="not public"):
            post(url, allowed=f"{ALLOWED}/32", resolve=resolve)
        assert len(there.calls) == 1
        assert there.calls[0].headers["host"] == f"rebound.example:{port}"
        assert seen() == 0


def test_of_several_addresses_only_the_admitted_ones_are_tried() -> None:
    with receiver() as there, trap() as (port, seen):
        url = there.url.replace(ALLOWED, "mixed.example")
        assert post(url, allowed=ALLOWED, resolve=resolving(["127.0.0.1", ALLOWED])) == 200
        with pytest.raises(NoCallError):
            post(f"http://mixed.example:{port}/", resolve=resolving(["127.0.0.1", "10.0.0.1"]))
        assert seen() == 0


def test_what_is_allowed_by_name_may_be_anywhere() -> None:
    with receiver() as there:
        resolve = resolving(["127.0.0.1", ALLOWED])
        url = there.url.replace(ALLOWED, "Hooks.Internal.")
        assert post(url, allowed="other.example, hooks.internal", resolve=resolve) == 200


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_everybody_knows_is_outside(address: str) -> None:
    assert is_outside(ip_address(address))
    assert not Guard().refuses(address)


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "hooks.localhost"])
def test_names_of_this_machine_are_inside_unless_they_are_allowed(host: str) -> None:
    assert Guard().refuses(host)
    assert not any(Guard(allowed).refuses(host) for allowed in ("127.0.0.1", "::1", host))
    assert not Guard().refuses(f"{host.rstrip('.')}.example")


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as there, trap() as (port, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        assert post(there.url, allowed=ALLOWED) == 200
        assert seen() == 0


def test_no_redirect_is_followed() -> None:
    with receiver() as there, trap() as (port, seen):
        there.status, there.location = 307, f"http://127.0.0.1:{port}/"
        assert post(there.url, allowed=ALLOWED) == 307
        assert len(there.calls) == 1
        assert seen() == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "cut off"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "cut off"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", "too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 8_000, "too long"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 4_000, "too long"),
        (None, "in time"),
    ],
)
def test_what_is_no_answer_is_told_without_the_address(answer: bytes | None, reason: str) -> None:
    with socket.create_server((ALLOWED, 0)) as server:

        def serve() -> None:
            connection = server.accept()[0]
            with connection:
                connection.recv(65_536)
                if answer is None:
                    while connection.recv(65_536):
                        pass  # until the caller has had enough
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NoCallError, match=reason):
            post(f"http://{ALLOWED}:{server.getsockname()[1]}/", allowed=ALLOWED, seconds=1)
        thread.join()


def test_an_endless_body_is_not_read() -> None:
    with socket.create_server((ALLOWED, 0)) as server:

        def serve() -> None:
            connection = server.accept()[0]
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n")
                    while True:
                        connection.sendall(bytes(65_536))
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        assert post(f"http://{ALLOWED}:{server.getsockname()[1]}/", allowed=ALLOWED) == 200
        thread.join()


def test_an_address_that_does_not_answer_is_reported() -> None:
    with socket.create_server((ALLOWED, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NoCallError, match="no connection"):
        post(f"http://{ALLOWED}:{port}/", allowed=ALLOWED)
    with pytest.raises(NoCallError, match="no such host"):
        post(f"http://{'a' * 70}.example/")


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hosts at slow.example that were looked up; no look-up answers before the end."""
    asked: list[str] = []
    is_over = threading.Event()
    look_up = socket.getaddrinfo

    def hang(host: str, *args: object, **more: object) -> object:
        if not host.endswith("slow.example"):
            return look_up("127.0.0.2" if host == "quick.example" else host, *args, **more)  # type: ignore[arg-type]
        asked.append(host)
        is_over.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked
    is_over.set()


def test_a_name_server_that_hangs_holds_up_its_owner_alone(slow_names: list[str]) -> None:
    """No call of another key, to a name or to an address, waits for the look-ups."""
    caller = Caller(Guard(ALLOWED))

    async def call(url: str, owner: str) -> int:
        return await caller.post(url, b"{}", {}, owner)

    async def run(url: str) -> None:
        hanging = [
            asyncio.create_task(call(f"http://{number}.slow.example/", "ann"))
            for number in range(2 * LOOKUPS_OF_OWNER)
        ]
        for refused in islice(asyncio.as_completed(hanging), LOOKUPS_OF_OWNER):
            with pytest.raises(NoCallError, match="too many DNS lookups"):
                await refused
        assert await call(url.replace(ALLOWED, "quick.example"), "bob") == 200
        assert await call(url, "bob") == await call(url, "ann") == 200
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)

    with receiver() as there:
        asyncio.run(run(there.url))
    assert len(slow_names) == LOOKUPS_OF_OWNER


@pytest.mark.usefixtures("slow_names")
def test_a_look_up_has_an_end_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "LOOKUP_SECONDS", 0.01)
    with pytest.raises(NoCallError, match="DNS lookup of the host did not end"):
        post("http://slow.example/", seconds=60)


def test_an_owner_may_look_up_again_when_look_ups_have_ended() -> None:
    async def run() -> None:
        caller = Caller(Guard())
        for _ in range(2 * LOOKUPS_OF_OWNER):
            with pytest.raises(NoCallError, match="no such host"):
                await caller.post(f"http://{'a' * 70}.example/", b"", {}, "ann")

    asyncio.run(run())


EXIT = """
import asyncio, socket, time
from server.webhooks.caller import Caller, NoCallError
from server.webhooks.address_rules import Guard
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
try:
    asyncio.run(Caller(Guard(), seconds=0.1).post("http://slow.example/", b"", {}, "ann"))
except NoCallError:
    print("ended")
"""


def test_the_process_ends_while_a_look_up_hangs() -> None:
    words = [sys.executable, "-c", EXIT]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert (ended.stdout, ended.stderr) == ("ended\n", "")
