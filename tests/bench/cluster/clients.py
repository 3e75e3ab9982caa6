"""The clients of a cluster: what submits, polls, listens, blocks and receives webhooks."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

from models.request.params import MODEL, GenerateParams
from server.keys.lookup import KeyLookup, digest
from tests.bench.processes import NO_LIMIT
from worker.broker.connection import connect_gateway
from worker.store.gateway_side import GatewayStore

AT_ONCE = 50
"""Submits that share a round trip to the broker when the queue is filled."""
RETENTION_SECONDS = 3600.0
POLL_SECONDS = 1.0
"""Between two polls of the `segmind` SDK."""
BODY = {"prompt": "A red panda drinks tea", "frames": 49, "steps": 30}
"""The shortest video of the estimates in docs/operate/performance.md: 27 s on an H100."""
FINAL = frozenset({"COMPLETED", "FAILED"})
FIRST_ERROR = 400
OPEN_SECONDS = 0.003
"""Between two new clients, so that they do not begin all at once."""


@dataclass
class Connection:
    """One kept-alive connection to the gateway."""

    key: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: str

    @classmethod
    async def open(cls, url: str, key: str) -> Connection:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        return cls(key, reader, writer, address.netloc)

    async def ask(self, verb: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of the response."""
        head = await self.send(verb, path, body)
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return int(head[9:12]), await self.reader.readexactly(length)

    async def send(self, verb: str, path: str, body: object = None) -> bytes:
        """The head of the response."""
        content = b"" if body is None else json.dumps(body).encode()
        self.writer.write(
            f"{verb} {path} HTTP/1.1\r\nhost: {self.host}\r\nx-api-key: {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        return await self.reader.readuntil(b"\r\n\r\n")


@dataclass
class Clients:
    """All of them, in this process.

    Attributes:
        url: of the gateway.
        keys: API keys, which take turns.
        ids: requests that were submitted and not seen to end, the oldest first, with their keys.
        counts: polls, events, submits, deliveries and errors so far.
        times: seconds of each poll and submit.
    """

    url: str
    keys: Sequence[str]
    webhook_url: str = ""
    ids: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _random: Random = field(default_factory=lambda: Random(1))

    async def serve_webhooks(self) -> None:
        """Answer each delivery with 200."""
        server = await asyncio.start_server(self._receive, "127.0.0.1", 0)
        self.webhook_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    async def fill(self, broker_url: str, count: int) -> None:
        """Submit `count` requests as a gateway does, without HTTP, which would take minutes."""
        redis = connect_gateway(broker_url)
        store = GatewayStore(redis, most_waiting=NO_LIMIT, retention_seconds=RETENTION_SECONDS)
        owners = [(await KeyLookup(redis).find(digest(key))).key_id for key in self.keys]
        params = GenerateParams.model_validate({**BODY, "seed": 1})
        further = {"webhook_url": self.webhook_url, "webhook_base": self.url}

        async def submit(number: int) -> None:
            owner = owners[number % len(owners)]
            accepted = await store.submit(params, owner, further=further)
            self.ids[accepted.request_id] = self._key(number)

        for first in range(0, count, AT_ONCE):
            await asyncio.gather(*map(submit, range(first, min(count, first + AT_ONCE))))
        await redis.aclose()

    async def submit(self, count: int, *, connections: int = 4) -> None:
        """Submit `count` requests, each with a webhook."""
        numbers = iter(range(count))

        async def one_connection(key: str) -> None:
            connection = await Connection.open(self.url, key)
            for _ in numbers:
                began = time.perf_counter()
                body = {**BODY, "webhook_url": self.webhook_url}
                status, answer = await connection.ask("POST", f"/v2/{MODEL}", body)
                self._note("submit", status, began)
                if status < FIRST_ERROR:
                    self.ids[json.loads(answer)["request_id"]] = key
            connection.writer.close()

        await asyncio.gather(*(one_connection(self._key(number)) for number in range(connections)))

    async def scrape(self, key: str, count: int) -> None:
        """Read /metrics so often."""
        connection = await Connection.open(self.url, key)
        for _ in range(count):
            began = time.perf_counter()
            status, _ = await connection.ask("GET", "/metrics")
            self._note("scrape", status, began)
        connection.writer.close()

    async def start_pollers(self, count: int) -> None:
        """Clients of the oldest requests, each as the SDK polls one until its end."""
        followed = iter(list(self.ids.items()))
        await self._start([self._poll(followed) for _ in range(count)])

    async def start_listeners(self, count: int) -> None:
        """Clients that listen to the events of requests anywhere in the queue."""
        chosen = self._random.sample(list(self.ids.items()), min(count, len(self.ids)))
        await self._start([self._listen(*each) for each in chosen])

    async def start_blockers(self, count: int) -> None:
        """Clients of the blocking call, whose requests are the last of the queue."""
        await self._start([self._block(self._key(number)) for number in range(count)])

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _start(self, clients: list[Coroutine[Any, Any, None]]) -> None:
        for client in clients:
            self._tasks.append(asyncio.create_task(self._counted(client)))
            await asyncio.sleep(OPEN_SECONDS)

    async def _counted(self, client: Coroutine[Any, Any, None]) -> None:
        try:
            await client
        except (OSError, EOFError):
            self.counts["errors"] += 1

    async def _poll(self, followed: Any) -> None:
        for request_id, key in followed:
            connection = await Connection.open(self.url, key)
            is_over = False
            while not is_over:
                await asyncio.sleep(POLL_SECONDS)
                began = time.perf_counter()
                status, body = await connection.ask("GET", f"/v2/requests/{request_id}/status")
                self._note("poll", status, began)
                is_over = json.loads(body).get("status") in FINAL
            connection.writer.close()
            self.ids.pop(request_id, None)

    async def _listen(self, request_id: str, key: str) -> None:
        connection = await Connection.open(self.url, key)
        await connection.send("GET", f"/v2/requests/{request_id}/events")
        while line := await connection.reader.readline():
            self.counts["event"] += line.startswith(b"event:")

    async def _block(self, key: str) -> None:
        connection = await Connection.open(self.url, key)
        await connection.send("POST", f"/v1/{MODEL}", BODY)
        self.counts["unblocked"] += 1

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.CancelledError):  # as the benchmark ends
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.counts["delivery"] += 1
        writer.close()

    def _note(self, name: str, status: int, began: float) -> None:
        self.counts[name] += 1
        self.counts["errors"] += status >= FIRST_ERROR
        self.times[name].append(time.perf_counter() - began)

    def _key(self, number: int) -> str:
        return self.keys[number % len(self.keys)]
