"""HTTP client for URLs that clients supply, guarded against SSRF.

It connects to the very address that it checked, so a name that resolves differently a moment later
leads nowhere else. It uses no proxy, follows no redirect and reads only the status of a response.
What it reads until then is limited: a receiver may send endless interim responses.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from threading import Thread

import httpcore2
import httpx2
from typing_extensions import override

from server.webhooks.address_rules import Guard, literal_address

Resolve = Callable[[str, int], Awaitable[list[str]]]

CALL_SECONDS = 15.0
"""From the DNS lookup to the head of the response."""
CONNECT_SECONDS = 5.0
"""To connect to one of several addresses."""
MOST_ANSWER_BYTES = 32_768
"""Read of a response, interim ones (1xx) included, until its status is known."""
LOOKUP_SECONDS = 10.0
"""A resolver asks a silent name server again after 5 seconds."""
LOOKUPS_OF_OWNER = 16
"""At once, abandoned ones included: the system's own time limit is a minute."""


class NoCallError(Exception):
    """There was no response. The text goes into the log, so it names no address."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves names itself, and connects to addresses only."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve
        self._backend = httpcore2.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first permitted address that answers.

        Raises:
            NoCallError: no address is permitted.
            httpcore2.NetworkError, httpcore2.TimeoutException: none answers.
        """
        addresses = await self._resolve(host, port)
        admitted = [address for address in addresses if self._guard.admits(host, address)]
        failure: Exception = NoCallError("the address is not public")
        for address in admitted:
            try:
                stream = await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _LimitedStream(stream)
        raise failure

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _LimitedStream(httpcore2.AsyncNetworkStream):
    """Reads so many bytes at most; those of a TLS handshake do not count."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MOST_ANSWER_BYTES
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise NoCallError("the head of the response is too long")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    @override
    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return _LimitedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))


class Caller:
    """Sends to URLs that clients supply."""

    def __init__(
        self,
        guard: Guard,
        *,
        resolve: Resolve | None = None,
        seconds: float = CALL_SECONDS,
    ) -> None:
        self._guard = guard
        self._resolve = resolve
        self._lookups = _Lookups()
        self._seconds = seconds

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()  # reads SSL_CERT_FILE, for an operator's own CA

    async def post(self, url: str, content: bytes, headers: Mapping[str, str], owner: str) -> int:
        """Return the status of the response. Its body is not read.

        `headers` lack `host` and `content-length`. `owner` is the key that supplied the URL: slow
        DNS lookups delay only this key.

        Raises:
            NoCallError: there was none in time, or the address is not permitted.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(httpx2.URL(url), content, headers, owner)
        except (TimeoutError, httpcore2.TimeoutException):
            raise NoCallError("no answer in time") from None
        except httpcore2.ConnectError as error:
            is_tls = isinstance(error.__cause__, ssl.SSLError)
            raise NoCallError("TLS failed" if is_tls else "no connection") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise NoCallError("the response is not HTTP, or was cut off") from None

    async def _post(
        self, url: httpx2.URL, content: bytes, headers: Mapping[str, str], owner: str
    ) -> int:
        own = {"host": url.netloc.decode("ascii"), "content-length": str(len(content))}
        # A pool for one call: a kept connection could serve a call that may not use it.
        async with (
            httpcore2.AsyncConnectionPool(
                ssl_context=self._tls if url.scheme == "https" else None,
                network_backend=GuardedBackend(
                    self._guard, self._resolve or partial(self._lookups, owner)
                ),
            ) as pool,
            pool.stream(
                "POST",
                httpcore2.URL(
                    scheme=url.raw_scheme,
                    host=url.raw_host,
                    port=url.port,
                    target=url.raw_path,
                ),
                headers=[
                    (name.encode("ascii"), value.encode("ascii"))
                    for name, value in (own | dict(headers)).items()
                ],
                content=content,
                extensions={"timeout": {"connect": CONNECT_SECONDS}},
            ) as answer,
        ):
            return answer.status


class _Lookups:
    """DNS lookups by the system, each in a daemon thread of its own.

    In a thread pool, lookups of one owner whose name server hangs would hold up all others, and the
    exit of the process, which joins the threads of a pool.
    """

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    async def __call__(self, owner: str, host: str, port: int) -> list[str]:
        literal = literal_address(host)
        if literal is not None:
            return [literal]
        if self._running[owner] >= LOOKUPS_OF_OWNER:
            raise NoCallError("too many DNS lookups of this key's hosts hang")
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                addresses = await self._begin(owner, host, port)
        except TimeoutError:
            raise NoCallError("the DNS lookup of the host did not end in time") from None
        if not addresses:
            raise NoCallError("no such host")
        return addresses

    def _begin(self, owner: str, host: str, port: int) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def end(addresses: list[str]) -> None:
            self._running[owner] -= 1
            if not answer.done():
                answer.set_result(addresses)

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, ValueError):  # ValueError: not a DNS name
                found = []
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(end, addresses)

        Thread(target=look_up, name="lookup", daemon=True).start()
        self._running[owner] += 1
        return answer
