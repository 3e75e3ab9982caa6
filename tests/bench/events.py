"""`python -m tests.bench events`: the cost of many clients that follow requests.

The same requests run three times, one after the other, on one worker with the fake engine: without
a client that follows them, with clients that listen to events, and with clients that poll as often
as there would be events. Each client follows one request to its end. Its delay is the time from
that end, by the broker's clock, until the client hears of it.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from redis import Redis
from rich.console import Console
from rich.table import Table

from models.request.params import MODEL
from server.api.poller import EVENT_INTERVAL_SECONDS
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.processes import Server, fake_worker, gateway, own_broker, wait_until_ready
from worker.broker.connection import connect_briefly
from worker.store import keyspace

STEPS = 30
STEP_SECONDS = 0.05
REQUEST = {"prompt": "a pond", "steps": STEPS, "frames": 7}

_console = Console(stderr=True)


@dataclass(frozen=True)
class Round:
    """One way to follow the requests.

    Attributes:
        name: of the way.
        seconds: it took.
        run_seconds: of each run.
        cpu_seconds: of the gateway.
        delays: of each client, in seconds.
    """

    name: str
    seconds: float
    run_seconds: list[float]
    cpu_seconds: float
    delays: list[float]


@dataclass(frozen=True)
class Target:
    """Where requests are made and followed."""

    server: Server
    key: str
    redis: Redis

    async def open(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """A connection, and what to send on it as often as one likes."""
        address = urlsplit(self.server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"GET {path} HTTP/1.1\r\nhost: {address.netloc}\r\nx-api-key: {self.key}\r\n\r\n"
        return reader, writer, head.encode()

    def ended_at(self, request_id: str) -> float:
        """By the broker's clock, which is this machine's."""
        return int(str(self.redis.hget(keyspace.record(request_id), "ended_at"))) / 1000


Follow = Callable[[Target, str], Awaitable[float]]
"""Returns when the client heard of the end."""


def run(clients: int, requests: int) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with own_broker(folder) as url, connect_briefly(url) as redis:
            key = create_key(redis, NewKey(name="bench"))
            worker = fake_worker(url, folder, step_seconds=STEP_SECONDS)
            with gateway(url, folder) as server, worker:
                wait_until_ready(f"{server.url}/readyz")
                target = Target(server, key, redis)
                rounds = [
                    asyncio.run(_round(target, name, follow, count, requests))
                    for name, follow, count in (
                        ("warm-up", _listen, 2),
                        ("no follower", _listen, 0),
                        ("events", _listen, clients),
                        ("polls", _poll, clients),
                    )
                ]
    Console().print(_table(rounds[1:], clients, requests))


async def _round(target: Target, name: str, follow: Follow, clients: int, requests: int) -> Round:
    _console.print(f"{requests} requests, followed by {clients} clients ({name}) …")
    cpu, began = target.server.cpu_seconds() or 0.0, time.monotonic()
    async with httpx2.AsyncClient(headers={"x-api-key": target.key}) as http:
        url = f"{target.server.url}/v2/{MODEL}"
        ids = [(await http.post(url, json=REQUEST)).json()["request_id"] for _ in range(requests)]
    followed = [ids[number % requests] for number in range(clients)]
    heard = await asyncio.gather(*(follow(target, request_id) for request_id in followed))
    await asyncio.gather(*(_wait(target, request_id) for request_id in ids))
    seconds = time.monotonic() - began
    records = [target.redis.hgetall(keyspace.record(request_id)) for request_id in ids]
    return Round(
        name=name,
        seconds=seconds,
        run_seconds=[
            (int(record["ended_at"]) - int(record["started_at"])) / 1000 for record in records
        ],
        cpu_seconds=(target.server.cpu_seconds() or 0.0) - cpu,
        delays=[
            at - target.ended_at(request_id) for at, request_id in zip(heard, followed, strict=True)
        ],
    )


async def _wait(target: Target, request_id: str) -> None:
    """Without the gateway."""
    while target.redis.hget(keyspace.record(request_id), "status") != "COMPLETED":  # noqa: ASYNC110
        await asyncio.sleep(EVENT_INTERVAL_SECONDS)


async def _listen(target: Target, request_id: str) -> float:
    reader, writer, question = await target.open(f"/v2/requests/{request_id}/events")
    writer.write(question)
    while await reader.readline() != b"event: output\n":
        if reader.at_eof():
            raise ConnectionError("The events ended before the request.")
    heard = time.time()
    writer.close()
    return heard


async def _poll(target: Target, request_id: str) -> float:
    reader, writer, question = await target.open(f"/v2/requests/{request_id}/status")
    while True:
        writer.write(question)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = json.loads(await reader.readexactly(length))
        if body["status"] == "COMPLETED":
            writer.close()
            return time.time()
        await asyncio.sleep(EVENT_INTERVAL_SECONDS)


def _table(rounds: list[Round], clients: int, requests: int) -> Table:
    table = Table(title=f"{requests} requests of {STEPS} steps, followed by {clients} clients")
    for heading in ("by", "run s, median", "all s", "gateway CPU", "CPU ms a client and second",
                    "delay s, p50", "p99"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "by" else "right")
    idle = rounds[0].cpu_seconds / rounds[0].seconds
    for each in rounds:
        cpu = each.cpu_seconds / each.seconds
        p50, p99 = statistics.quantiles(each.delays, n=100)[49::49] if each.delays else (None, None)
        table.add_row(
            each.name,
            f"{statistics.median(each.run_seconds):.2f}",
            f"{each.seconds:.1f}",
            f"{cpu:.1%}",
            f"{1000 * (cpu - idle) / clients:.2f}" if each.delays else "",
            *("" if delay is None else f"{delay:.2f}" for delay in (p50, p99)),
        )
    return table
