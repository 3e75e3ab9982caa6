"""A proxy that leads the names of the hosted API to one server.

It refuses every other host, but those that the server's links lead to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel

from server.cli.client import http_client
from server.errors import CommandError, visible
from server.paths import HOSTED_NAMES

if TYPE_CHECKING:
    import trustme

CHUNK_BYTES = 65_536
LINGER_SECONDS = 1.0
"""For the rest of a refused request. A close with unread bytes loses the response."""
VERSION_SECONDS = 3.0
"""For the server's answer to `/version`: the program waits for its refusal as long."""
PLAIN_PORT = 80
TUNNEL = "CONNECT"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _Version(BaseModel):
    link_origins: list[str]


class Target(NamedTuple):
    """The server that the hosted names lead to."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> Self:
        """The server of a base URL, with or without scheme and `/v1`.

        Raises:
            CommandError: it is no URL of a server.
        """
        given, url = url, url if "://" in url else f"http://{url}"
        url = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path:
            raise CommandError(
                "--url, or MOCHI_URL, must be the scheme and the host of a server, like "
                f"http://127.0.0.1:8000, not {given}."
            )
        if parts.scheme == "http":
            return cls(url, parts.hostname, port or 80, None)
        return cls(url, parts.hostname, port or 443, httpx2.create_ssl_context())

    def targets_of_links(self, key: str) -> dict[tuple[str, int], Target] | None:
        """The hosts, with ports, that this server's links lead to; None if they are unknown."""
        try:
            with http_client(self.url, {"x-api-key": key}) as http:
                response = http.get(f"{self.url}/version", timeout=VERSION_SECONDS)
            origins = _Version.model_validate_json(response.content).link_origins
            targets = [self.of(origin) for origin in origins]
        # No answer, or that of another kind of server.
        except (httpx2.HTTPError, ValueError, CommandError):
            return None
        return {(target.host, target.port): target for target in targets}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, ssl=self.tls)


class Proxy:
    """Serves the connections of one program.

    Attributes:
        led: connections to the hosted API.
        refused: connections to other hosts.
        untrusted: connections to the hosted API whose TLS handshake failed.
    """

    def __init__(
        self, target: Target, key: str, authority: trustme.CA, say: Callable[[str], None]
    ) -> None:
        """`key` asks the server where its links lead; no call of the program gets it."""
        self._target = target
        self._key = key
        self._say = cache(say)  # each message once
        self._tls_of = cache(lambda host: _context(authority, host))
        self.led = 0
        self.refused: Counter[str] = Counter()
        self.untrusted = 0
        self._linked: dict[tuple[str, int], Target] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection, to its end."""
        # A client that speaks no HTTP, hangs up, or does not trust the certificate.
        unfit = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)
        # The command has ended: asyncio would log a connection's task that ends as cancelled.
        with suppress(*unfit, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, _, headers = head.partition("\r\n")
        verb, asked = line.split(" ")[:2]
        parts = urlsplit(f"//{asked}" if verb == TUNNEL else asked)
        host, port = parts.hostname or asked, parts.port or PLAIN_PORT
        target, is_secure = self._target, port != PLAIN_PORT
        if f".{host}".endswith(HOSTED_NAMES):
            self.led += 1
        elif linked := await self._find_linked(host, port):
            target, is_secure = linked, linked.tls is not None
        else:
            self.refused[host] += 1
            reason = f"refused {host}: only *{HOSTED_NAMES} can be reached, at {target.url}"
            await self._refuse(reader, writer, 403, reason)
            return
        try:
            answer, upstream = await target.connect()
        except OSError as error:
            reason = f"no answer from {target.url}: {error}. Is it running? `mochi-server up`"
            await self._refuse(reader, writer, 502, reason)
            return
        try:
            if verb == TUNNEL:
                writer.write(ESTABLISHED)
                if is_secure:
                    await self._start_tls(writer, host)
            else:  # only one request: the next on this connection may be for another host
                line = line.replace(f"{parts.scheme}://{parts.netloc}", "", 1)
                upstream.write(f"{line}\r\nConnection: close\r\n{headers}".encode("latin-1"))
            await asyncio.gather(_copy(reader, upstream), _copy(answer, writer))
        finally:
            upstream.close()

    async def _find_linked(self, host: str, port: int) -> Target | None:
        """Ask late, and again after a failure: the server may start after the program."""
        if self._linked is None:
            self._linked = await asyncio.to_thread(self._target.targets_of_links, self._key)
        return (self._linked or {}).get((host, port))

    async def _start_tls(self, writer: asyncio.StreamWriter, host: str) -> None:
        try:
            await writer.start_tls(self._tls_of(host))
        except OSError:  # an ssl.SSLError, or the client has closed the connection
            self.untrusted += 1
            raise

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, reason: str
    ) -> None:
        """Refuse with the reason in the status line: clients show no more of a proxy's response."""
        reason = visible(f"mochi-server wrap: {reason}")
        self._say(reason)
        writer.write(
            f"HTTP/1.1 {status} {reason}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode(
                "ascii", "replace"
            )
        )
        writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(CHUNK_BYTES):
                    pass


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    if sink.can_write_eof():
        with suppress(OSError):
            sink.write_eof()
    else:  # TLS has no half that ends
        sink.close()


def _context(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert(host).configure_cert(context)
    return context
