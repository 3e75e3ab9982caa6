"""uvicorn's HTTP protocol with limits to the size and the time of a request's head.

uvicorn itself buffers headers of any size and waits for an incomplete request without limit, which
lets clients without a key use up memory and connections. It takes trailers for headers, and loses
the body of a request that offers an upgrade. It also writes the head and the body of a response
separately; here they leave in one packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.transport.connection.listener import HEAD_SECONDS
from server.transport.error_body import ErrorBody
from server.transport.security_headers import security_headers

MOST_HEAD_BYTES = 32_768
"""Request line and headers together."""
LINGER_BYTES = 8_388_608
"""Most of a refused body that is discarded. A close with unread bytes resets the connection, and
the client may lose the response that it has not read yet."""
LINGER_SECONDS = 5.0
"""Longest wait for the rest of a refused body."""
IPV4_MAPPED = "::ffff:"
"""Before the address of an IPv4 client whose socket is for IPv6 as well."""
TOO_LARGE = "The headers are too large."


class HeadTooLargeError(Exception):
    """Raised inside the parser to refuse the request."""


class _JoinedWrites(asyncio.Transport):
    """Holds what is written until the next write, at most for this turn of the event loop.

    `close` lingers while `has_unread`: it sends the end, and closes when the client does.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        has_unread: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._has_unread = has_unread
        self._held = b""
        self._linger_bytes = LINGER_BYTES
        self.is_lingering = False
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held:
            self.flush(bytes(data))
        else:
            self._held = bytes(data)
            self._loop.call_soon(self.flush)

    @override
    def is_closing(self) -> bool:
        return self.is_lingering or self._transport.is_closing()

    @override
    def close(self) -> None:
        self.flush()
        if self.is_lingering or self._transport.is_closing() or not self._has_unread():
            self._transport.close()
            return
        self.is_lingering = True
        if self._transport.can_write_eof():  # TLS cannot
            self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_SECONDS, self._transport.close)

    def discard(self, data: bytes) -> None:
        """Bytes that have come while the close lingers."""
        self._linger_bytes -= len(data)
        if self._linger_bytes < 0:
            self._transport.close()

    def flush(self, more: bytes = b"") -> None:
        data, self._held = self._held + more, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)


class _Parser(httptools.HttpRequestParser):
    """Stays with HTTP/1.1 where a client offers h2c, as Java's client does, or WebSockets.

    httptools takes all that follows such a head, the body too, for another protocol.
    """

    def __init__(self, protocol: GuardedProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._protocol = protocol

    @override
    def feed_data(self, data: bytes | memoryview) -> None:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            try:
                super().feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self.offers_upgrade():
                    raise
                rest = rest[upgrade.args[0] :]
                super().feed_data(self._protocol.head_without_upgrade())
            else:
                return

    def offers_upgrade(self) -> bool:
        """CONNECT has no meaning in HTTP/1.1 alone."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"


class GuardedProtocol(HttpToolsProtocol):
    """Refuses heads that are too large or too slow. Errors are JSON, also for invalid HTTP.

    The state of a request has `hang_up`, which is set when the client sends no more.
    """

    parser: _Parser
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    """Set while a head, or the trailers of a request, may be incomplete."""

    @override
    def connection_made(  # type: ignore[override]  # as uvicorn narrows it
        self, transport: asyncio.Transport
    ) -> None:
        self._writes = _JoinedWrites(transport, self.loop, self._has_unread_body)
        self._hang_up = asyncio.Event()
        self.app_state = {**self.app_state, "hang_up": self._hang_up}
        super().connection_made(self._writes)
        if self.client:  # in IPv4's own form, which trusted proxies are given in
            host, port = self.client
            self.client = (host.removeprefix(IPV4_MAPPED), port)
        self.parser = _Parser(self)
        self._open_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._hang_up.set()
        self._close_head()
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.body = bytearray()  # now: the garbage collector comes late to this cycle

    @override
    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's closes always
        """Keep the connection until the last request that is complete has its response.

        The client may have ended its side only; whether it has closed shows when it is written to.
        """
        self._hang_up.set()
        self._writes.flush()
        is_kept = self._is_answering() and not self._has_unread_body()
        if is_kept:
            self.cycle.keep_alive = False
        return is_kept and self.scheme == "http"  # TLS closes in any case, and logs a warning

    @override
    def data_received(self, data: bytes) -> None:
        if self._writes.is_lingering:
            self._writes.discard(data)
            return
        awaited, earlier = self._deadline, self.cycle
        super().data_received(data)
        if self.cycle is not earlier and self._has_unread_body():
            self.flow.pause_reading()  # until the route reads the body: then the key is known
        if self.transport.is_closing():
            return
        if awaited is not None and self._deadline is awaited:
            # All of it belongs to this head; the callbacks see only complete headers.
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(TOO_LARGE)
        elif self._is_idle() and self.timeout_keep_alive_task is None:
            self._open_head()  # bytes that begin no request cancelled uvicorn's own timer

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._open_head()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if self.cycle is None or self.cycle.scope is not self.scope:
            super().on_header(name, value)  # drop trailers: they come after the head is complete

    @override
    def on_headers_complete(self) -> None:
        if self.parser.offers_upgrade():
            return  # the head comes again, without the offer
        self._close_head()
        self._head_bytes = len(self.url) + sum(len(name) + len(text) for name, text in self.headers)
        if self._head_bytes > MOST_HEAD_BYTES:
            raise HeadTooLargeError
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Limit what follows like a head: after the last chunk, trailers."""
        if self._deadline is None:
            self._open_head()

    @override
    def on_body(self, body: bytes) -> None:
        if not self._is_idle():  # after the response, all that is left of the body has one limit
            self._close_head()
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        if self.parser.offers_upgrade():
            return
        self._close_head()
        super().on_message_complete()

    def head_without_upgrade(self) -> bytes:
        """The head that was read last, for the parser."""
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = (b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"upgrade")
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*line, b"".join(headers))

    @override
    def send_400_response(self, msg: str) -> None:
        error = TOO_LARGE if self._head_bytes > MOST_HEAD_BYTES else msg
        body = ErrorBody(error=error).model_dump_json().encode()
        safe = b"".join(b"%b: %b\r\n" % header for header in security_headers("", 400, self.scheme))
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n%b"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (safe, len(body), body)
        )
        self.transport.close()

    def _open_head(self) -> None:
        self._head_bytes = 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._time_out)

    def _close_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        if not self._is_answering():
            self.transport.close()
        else:
            self._open_head()  # an earlier response is not complete: not the client's fault

    def _has_unread_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_idle(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete
