"""Brokers as operators have them: plain servers on TCP, Sentinels, a proxy that speaks TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from typing_extensions import override

from tests.support.stack import Stack, eventually
from worker.broker.connection import connect_briefly
from worker.broker.program import find_program

TLS_HANDSHAKE = b"\x16"
SAFE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


class ExternalStack(Stack):
    """Gateways and workers on a broker that is not of their making."""

    def __init__(self, folder: Path, url: str, **settings: str) -> None:
        super().__init__(folder, redis_url=url, engine="fake", **settings)
        self.redis.close()
        self.redis = connect_briefly(url)

    @override
    def __enter__(self) -> Stack:
        return self


class Valkey:
    """A server on a free port of loopback; `arguments` are its own."""

    def __init__(self, folder: Path, *arguments: str, password: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir()
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [find_program(""), *arguments, *common], stdout=log, stderr=log
            )
        self.redis = Redis(port=self.port, password=password or None, decode_responses=True)
        eventually(self._answers)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.redis.close()
        self._process.kill()
        self._process.wait()

    def tell(self, *words: str) -> None:
        """Give it a command."""
        self.redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with suppress(RedisError):
            return bool(self.redis.ping())
        return False


@contextmanager
def valkey(folder: Path, *arguments: str, password: str = "") -> Iterator[Valkey]:
    """One that ends with the block."""
    server = Valkey(folder, *arguments, password=password)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def sentinel(folder: Path, master_port: int, *lines: str, password: str = "") -> Iterator[Valkey]:
    """One Sentinel that takes the master for dead after half a second and decides alone."""
    config = folder.with_suffix(".conf")
    config.write_text(
        "\n".join(
            [
                f"sentinel monitor mochi 127.0.0.1 {master_port} 1",
                "sentinel down-after-milliseconds mochi 500",
                "sentinel failover-timeout mochi 2000",
                *lines,
            ]
        )
    )
    with valkey(folder, str(config), "--sentinel", password=password) as server:
        yield server


@contextmanager
def proxy(target: Callable[[], int], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a proxy that takes every new connection to the port that is `target` then.

    It speaks TLS for a server that cannot, as the bundled one. It also accepts clients without TLS,
    such as a Sentinel that asks its master.
    """
    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def run() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepting = asyncio.create_task(_accept(listener, target, context))
            port = int(listener.getsockname()[1])
            started.set_result((port, partial(loop.call_soon_threadsafe, over.set)))
            await over.wait()
            accepting.cancel()
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    port, stop = started.result(10)
    try:
        yield port
    finally:
        stop()
        thread.join()


async def _accept(
    listener: socket.socket, target: Callable[[], int], context: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    meetings = set()
    while True:
        caller, _ = await loop.sock_accept(listener)
        meetings.add(asyncio.create_task(_meet(caller, target(), context)))


async def _meet(caller: socket.socket, target: int, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    caller.settimeout(5)
    with suppress(OSError):
        first = await asyncio.to_thread(caller.recv, 1, socket.MSG_PEEK)
        reader = asyncio.StreamReader()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader),
            caller,
            ssl=context if first == TLS_HANDSHAKE else None,
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        inner, outer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pump(reader, outer), _pump(inner, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def free_port() -> int:
    """One that nothing listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
