"""Connections to the broker that break at the worst moment: it is done, and the reply is lost."""

from __future__ import annotations

import hashlib
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from worker.store import scripts

CHUNK = 1 << 16
NOTHING_DONE = (b"-", b"_", b"$-1", b"*-1")
"""How a reply begins to a command that was refused, or found nothing."""


class LossyProxy:
    """Listens on loopback and passes all on to the broker's Unix socket.

    Commands are named as the scripts are (`submit`), or as in the protocol (`BLMOVE`).

    Attributes:
        lost: how many replies of each command were lost.
    """

    def __init__(self, broker_url: str) -> None:
        self.lost: Counter[str] = Counter()
        self._path = broker_url.removeprefix("unix://")
        self._to_lose: Counter[str] = Counter()
        self._before: dict[str, Callable[[], None]] = {}
        self._after: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> LossyProxy:
        _in_background(self._accept)
        return self

    def __exit__(self, *_error: object) -> None:
        for each in list(self._sockets):
            _close(each)

    def lose(self, command: str, times: int = 1) -> None:
        """Do the command and lose its reply, with the connection, the next so many times."""
        with self._lock:
            self._to_lose[command] += times

    def before(self, command: str, do: Callable[[], None]) -> None:
        """When the command is sent next, `do` something, and then lose it, undone."""
        self._before[command] = do

    def after(self, command: str, do: Callable[[], None]) -> None:
        """When the command is done next, `do` something, and then lose its reply."""
        self._after[command] = do
        self.lose(command)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                broker = socket.socket(socket.AF_UNIX)
                self._sockets += [client, broker]
                try:
                    broker.connect(self._path)
                except OSError:
                    _close(client)
                    continue
                _in_background(_Connection(self, client, broker).run)

    def is_lost_before(self, asked: bytes) -> bool:
        """Whether to break the connection before the broker hears of what a client asked."""
        name = next((name for name in [*self._before] if _mark(name) in asked), None)
        if name is None:
            return False
        self._before.pop(name)()
        return True

    def is_lost_after(self, asked: bytes, reply: bytes) -> bool:
        """Whether to break the connection now that it is done."""
        if reply.startswith(NOTHING_DONE):
            return False
        with self._lock:
            name = next((name for name in +self._to_lose if _mark(name) in asked), None)
            if name is None:
                return False
            self._to_lose[name] -= 1
            self.lost[name] += 1
            do = self._after.pop(name, None)
        if do is not None:
            do()
        return True


class _Connection:
    """One client's, and ours to the broker for it. A client waits for each reply."""

    def __init__(self, proxy: LossyProxy, client: socket.socket, broker: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = broker
        self._asked = b""

    def run(self) -> None:
        """Until one of the two goes, or a reply is lost."""
        with suppress(OSError, ValueError):  # closed, by us or by them
            while self._pass_on():
                pass
        _close(self._client)
        _close(self._broker)

    def _pass_on(self) -> bool:
        ready, _, _ = select.select([self._client, self._broker], [], [])
        data = ready[0].recv(CHUNK)
        if not data:
            return False
        if ready[0] is self._client:
            self._asked = data
            if self._proxy.is_lost_before(data):
                return False
            self._broker.sendall(data)
        else:
            if self._proxy.is_lost_after(self._asked, data):
                return False
            self._client.sendall(data)
        return True


def _mark(command: str) -> bytes:
    if command.isupper():
        return command.encode()
    return hashlib.sha1(scripts.source(command).encode()).hexdigest().encode()  # noqa: S324 (Redis)


def _in_background(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
