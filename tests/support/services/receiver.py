"""A receiver of webhooks, as a real HTTP server; and a trap: a port that no call may reach."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

ALLOWED = "127.0.0.2"
"""Where it listens. The rest of loopback is not allowed."""
INSIDE = [
    "127.0.0.1", "127.0.0.3", "127.255.255.254", "127.1", "127.0.1", "2130706433", "0x7f000001",
    "0x7F.1", "017700000001", "0177.0.0.1", "0x7f.0x0.0x0.0x1", "0", "0.0.0.0", "localhost",  # noqa: S104
    "LOCALHOST.", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]",
    "[2001:0:7f00:1::]", "[fe80::1]", "[fec0::1]", "[fd00:ec2::254]", "[ff02::1]", "[100::1]",
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "2852039166",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "192.88.99.1", "127。0。0。1",
]  # fmt: skip
"""Hosts that lead to this machine, or to what only its neighbours know."""


@dataclass
class Call:
    """What came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def verified(self, secret: str) -> Any:
        """The body, if the signature is right; as a receiver does it."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """Answers with `status`, or what `answer` says of a call.

    Attributes:
        url: of it.
        calls: all that came.
    """

    url: str = ""
    status: int = 200
    location: str = ""
    before: Callable[[Call], None] = lambda _call: None
    calls: list[Call] = field(default_factory=list)

    def of(self, request_id: str) -> list[Call]:
        """What came of one request."""
        return [call for call in self.calls if call.headers["webhook-id"] == request_id]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One that listens within the block."""
    it = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            call = Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            it.calls.append(call)
            it.before(call)
            with suppress(OSError):  # the client may be dead
                self.send_response(it.status)
                if it.location:
                    self.send_header("location", it.location)
                self.end_headers()

        def log_message(self, *_args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((ALLOWED, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    it.url = f"http://{ALLOWED}:{server.server_port}/hook"
    try:
        yield it
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def trap() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port on all addresses of this machine, and how many connections it has seen."""
    with socket.create_server(("", 0), backlog=128) as four:
        port = int(four.getsockname()[1])
        listeners = [four]
        with suppress(OSError):  # a machine without IPv6
            listeners.append(socket.create_server(("::", port), family=socket.AF_INET6))
        for listener in listeners:
            listener.setblocking(False)

        def seen() -> int:
            count = 0
            for listener in listeners:
                with suppress(BlockingIOError):
                    while True:
                        listener.accept()[0].close()
                        count += 1
            return count

        try:
            yield port, seen
        finally:
            for listener in listeners[1:]:
                listener.close()
