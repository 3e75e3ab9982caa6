"""`python -m tests.bench forecast`: how far `eta_seconds` is from what comes.

Requests of mixed lengths come at random moments to workers that take a card's time. What each is
told right after its submit, and as its run starts, is compared with when it ended, by the broker.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx2
from redis import Redis
from rich.console import Console
from rich.table import Table

from models.request.params import MODEL
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.processes import BenchError, fake_worker, gateway, own_broker, wait_until_ready
from worker.broker.connection import connect_briefly
from worker.store import keyspace

POLL_SECONDS = 0.1
SPEED = "h100/60"
"""An hour becomes a minute."""
LENGTHS = ((7, 20), (49, 30), (103, 50), (160, 30))
"""Frames and steps of the runs that the first forecasts are made of."""
PAUSE_SECONDS = 0.5
"""Between two submits, on average."""

_console = Console(stderr=True)


@dataclass(frozen=True)
class Word:
    """Something that a request was told: so many seconds left, when so many were."""

    said: float
    left: float

    @property
    def error_seconds(self) -> float:
        """How far off it was."""
        return abs(self.said - self.left)

    @property
    def error(self) -> float:
        """As a share of what was left."""
        return self.error_seconds / self.left


@dataclass(frozen=True)
class Told:
    """What one request was told."""

    at_submit: Word
    at_start: Word


def run(requests: int, workers: int, speed: str, seed: int) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as processes:
        folder = Path(name)
        url = processes.enter_context(own_broker(folder))
        redis = processes.enter_context(connect_briefly(url))
        key = create_key(redis, NewKey(name="bench"))
        server = processes.enter_context(gateway(url, folder))
        for number in range(workers):
            worker = fake_worker(url, folder, speed=speed, name=f"worker-{number}")
            processes.enter_context(worker)
        wait_until_ready(f"{server.url}/readyz")
        told = asyncio.run(_measure(server.url, key, redis, requests, Random(seed)))
    Console().print(_table(told, f"{requests} requests, {workers} workers, {speed}"))


async def _measure(
    url: str, key: str, redis: Redis, requests: int, random: Random
) -> Sequence[Told]:
    async with httpx2.AsyncClient(base_url=url, headers={"x-api-key": key}) as http:
        _console.print(f"{len(LENGTHS)} requests to learn from …")
        known = [await _submit(http, frames, steps) for frames, steps in LENGTHS]
        await asyncio.gather(*(_end(http, each) for each in known))
        following = []
        for number in range(requests):
            _console.print(f"request {number + 1} of {requests} …", end="\r")
            request_id = await _submit(http, random.randint(1, 160), random.randint(10, 75))
            following.append(asyncio.create_task(_follow(http, redis, request_id)))
            await asyncio.sleep(random.expovariate(1 / PAUSE_SECONDS))
        _console.print(f"{requests} requests on their way …    ")
        return await asyncio.gather(*following)


async def _submit(http: httpx2.AsyncClient, frames: int, steps: int) -> str:
    body = {"prompt": "a pond", "frames": frames, "steps": steps}
    answer = (await http.post(f"/v2/{MODEL}", json=body)).json()
    return str(answer["request_id"])


async def _status(http: httpx2.AsyncClient, request_id: str) -> dict[str, Any]:
    answer = await http.get(f"/v2/requests/{request_id}/status")
    if not answer.is_success:
        raise BenchError(f"A request was lost: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


async def _end(http: httpx2.AsyncClient, request_id: str) -> None:
    while (await _status(http, request_id))["status"] != "COMPLETED":  # noqa: ASYNC110 (a poll)
        await asyncio.sleep(POLL_SECONDS)


async def _follow(http: httpx2.AsyncClient, redis: Redis, request_id: str) -> Told:
    submitted_at, at_submit = time.time(), (await _status(http, request_id))["eta_seconds"]
    while (body := await _status(http, request_id))["status"] == "QUEUED":  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    started_at, at_start = time.time(), body["eta_seconds"]
    await _end(http, request_id)
    ended_at = int(str(redis.hget(keyspace.record(request_id), "ended_at"))) / 1000
    return Told(
        at_submit=Word(at_submit, ended_at - submitted_at),
        at_start=Word(at_start, ended_at - started_at),
    )


def _table(told: Sequence[Told], title: str) -> Table:
    table = Table(title=title)
    for heading in ("told", "s left, median", "error, median", "p90", "in s, median", "p90"):
        table.add_column(heading, justify="left" if heading == "told" else "right")
    for when, words in (
        ("after the submit", [each.at_submit for each in told]),
        ("as the run starts", [each.at_start for each in told]),
    ):
        table.add_row(
            when,
            f"{statistics.median(word.left for word in words):.1f}",
            *(f"{share:.1%}" for share in _median_and_p90([word.error for word in words])),
            *(f"{off:.2f}" for off in _median_and_p90([word.error_seconds for word in words])),
        )
    return table


def _median_and_p90(errors: Sequence[float]) -> tuple[float, float]:
    deciles = statistics.quantiles(errors, n=10, method="inclusive")
    return deciles[4], deciles[8]
