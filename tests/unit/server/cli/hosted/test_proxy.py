"""The proxy of `wrap`: what it makes of the server's /version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import trustme

from server.cli.hosted import proxy
from server.cli.hosted.proxy import Proxy, Target

PATIENCE_SECONDS = 20.0
REFUSED = "HTTP/1.1 403 "
AUTHORITY = trustme.CA()
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with `version`, or with nothing and no end if that is None."""

    def __init__(self, version: object) -> None:
        self._version = version
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        if self._version is None:
            await reader.read()
        else:
            body = json.dumps(self._version)
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}".encode())
        writer.close()


async def call(server: Server, *authorities: str) -> list[str]:
    """The status lines that the proxy of this server answers with, in order."""
    async with asyncio.timeout(PATIENCE_SECONDS), await start(server.serve) as upstream:
        target = Target.of(f"http://{address(upstream)}")
        served = Proxy(target, "mochi_key", AUTHORITY, lambda _text: None)
        async with await start(served.serve) as listening:
            host, port = address(listening).split(":")
            return [await connect(host, port, authority) for authority in authorities]


async def start(serve: Serve) -> asyncio.Server:
    return await asyncio.start_server(serve, "127.0.0.1", 0)


def address(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()
    return f"{host}:{port}"


async def connect(host: str, port: str, authority: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return line.decode()


def test_a_server_whose_links_lead_nowhere_else_is_asked_once() -> None:
    server = Server({"link_origins": []})
    lines = asyncio.run(call(server, "example.com:443", "example.org:443"))
    assert all(line.startswith(REFUSED) for line in lines)
    assert server.asked == 1


@pytest.mark.parametrize(
    "version",
    [
        [],
        {},
        "any",
        {"link_origins": None},
        {"link_origins": [None]},
        {"link_origins": ["http://example.com/videos"]},
    ],
)
def test_after_an_answer_of_another_kind_of_server_hosts_are_refused_and_it_is_asked_again(
    version: object,
) -> None:
    server = Server(version)
    lines = asyncio.run(call(server, "example.com:80", "example.com:80"))
    assert all(line.startswith(REFUSED) for line in lines)
    assert server.asked == 2


def test_a_server_that_hangs_does_not_hold_up_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "VERSION_SECONDS", 0.1)
    (line,) = asyncio.run(call(Server(None), "example.com:443"))
    assert line.startswith(REFUSED)
