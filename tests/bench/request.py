"""`python -m tests.bench request`: where the time of the default request goes, on mock weights.

A client's time is denoising + video + the rest. The video's part is to decode the latents and to
encode the frames, which go hand in hand; the rest is what this server adds to the work: HTTP, the
queue, the store, publishing the file and sending it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from models.request.example import EXAMPLE_REQUEST
from models.request.params import MODEL
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.processes import gateway, mock_worker, own_broker, wait_until_ready
from worker.broker.connection import connect_briefly

TIMEOUT_SECONDS = 600.0

_console = Console(stderr=True)


@dataclass(frozen=True)
class Times:
    """Seconds of one request: as the client saw it, and as the worker logged it."""

    total: float
    denoising: float
    video: float

    @property
    def row(self) -> tuple[float, float, float, float]:
        """All of them, and what is neither denoising nor video."""
        return self.total, self.denoising, self.video, self.total - self.denoising - self.video


def run(count: int) -> None:
    """Measure `count` requests, one after the other, and print their times and medians."""
    table = Table(title=f"{EXAMPLE_REQUEST['frames']} frames, {EXAMPLE_REQUEST['steps']} steps")
    for heading in ("request", "total s", "denoising s", "video s", "the rest s"):
        table.add_column(heading, justify="right")
    measured = list(_measure(count))
    for number, times in enumerate(measured, start=1):
        table.add_row(str(number), *_cells(times.row))
    table.add_section()
    columns = zip(*(times.row for times in measured), strict=True)
    table.add_row("median", *_cells(statistics.median(column) for column in columns))
    Console().print(table)


def _measure(count: int) -> Iterator[Times]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with own_broker(folder) as url:
            key = create_key(connect_briefly(url), NewKey(name="bench"))
            with gateway(url, folder) as server, mock_worker(url, folder) as log:
                _console.print("loading the mock weights …")
                wait_until_ready(f"{server.url}/readyz")
                client = httpx2.Client(headers={"x-api-key": key}, timeout=TIMEOUT_SECONDS)
                for number in range(1, count + 1):
                    _console.print(f"request {number} of {count} …")
                    started = time.perf_counter()
                    request_id = _generate(client, server.url)
                    yield _times(time.perf_counter() - started, log, request_id)


def _generate(client: httpx2.Client, url: str) -> str:
    response = client.post(f"{url}/v1/{MODEL}", json=EXAMPLE_REQUEST)
    return response.raise_for_status().headers["x-request-id"]


def _times(total: float, log: Path, request_id: str) -> Times:
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "run.encoded" and event["request_id"] == request_id:
            return Times(total, event["denoising_seconds"], event["video_seconds"])
    raise LookupError(request_id)


def _cells(seconds: Iterable[float]) -> Iterator[str]:
    return (f"{value:.3f}" for value in seconds)
