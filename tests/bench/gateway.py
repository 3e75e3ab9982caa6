"""`python -m tests.bench gateway`: how many submits and polls one gateway process answers a second.

Starts a broker and a gateway of its own, and the bare prototype beside it, and sends each call to
both in turn, so that they are compared on the same machine in the same seconds. No worker runs.
The figure to look at is the CPU time of a server's process per request, beside the prototype's.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from models.request.example import EXAMPLE_REQUEST
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.load import Outcome, Request, generator, send
from tests.bench.processes import Server, gateway, own_broker, prototype
from worker.broker.connection import connect_briefly

WARM_UP_SECONDS = 1.0
SLICE_SECONDS = 1.0
"""The servers take turns of this length, so that both meet the same noise of the machine."""

_console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        server: `gateway` or `prototype`.
        call: `submit` or `status`.
        connections: at once.
        cpu_us: CPU time of the server process per request in us; None where it cannot be read.
        ratio: of `cpu_us` to the prototype's.
    """

    server: str
    call: str
    connections: int
    outcome: Outcome
    cpu_us: float | None
    ratio: float | None


def run(connections: list[int], seconds: float, output: Path | None) -> None:
    """Measure, print a table on standard output, and write JSON to `output` if it is given."""
    rows = list(_measure(connections, seconds))
    Console().print(_table(rows))
    if output is not None:
        output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _measure(connections: list[int], seconds: float) -> Iterator[Row]:
    body = json.dumps(EXAMPLE_REQUEST)
    with tempfile.TemporaryDirectory() as name, own_broker(Path(name)) as url:
        key = create_key(connect_briefly(url), NewKey(name="bench"))
        with gateway(url, Path(name)) as ours, prototype(url, Path(name)) as bare:
            for call in ("submit", "status"):
                requests = {server: _request(server, call, key, body) for server in (bare, ours)}
                for count in connections:
                    _console.print(f"{call} on {count} connections …")
                    yield from _compare(call, requests, count, seconds)


def _compare(
    call: str, requests: Mapping[Server, Request], count: int, seconds: float
) -> Iterator[Row]:
    """Rows of all servers, the prototype first."""
    for request in requests.values():
        send(request, connections=count, seconds=WARM_UP_SECONDS)
    slices: dict[Server, list[tuple[Outcome, float | None]]] = {server: [] for server in requests}
    for _ in range(max(1, round(seconds / SLICE_SECONDS))):
        for server, request in requests.items():
            before = server.cpu_seconds()
            outcome = send(request, connections=count, seconds=SLICE_SECONDS)
            slices[server].append((outcome, _between(before, server.cpu_seconds())))
    bare_us = None
    for server, measured in slices.items():
        outcome = Outcome.of_all([outcome for outcome, _ in measured])
        times = [cpu_seconds for _, cpu_seconds in measured if cpu_seconds is not None]
        cpu_us = sum(times) * 1e6 / outcome.requests if times else None
        bare_us = bare_us or cpu_us
        ratio = cpu_us / bare_us if cpu_us and bare_us else None
        yield Row(server.name, call, count, outcome, cpu_us, ratio)


def _between(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _request(server: Server, call: str, key: str, body: str) -> Request:
    submit = f"{server.url}/v2/mochi-1"
    if call == "submit":
        return Request("POST", submit, key, body)
    headers = {"x-api-key": key, "content-type": "application/json"}
    request_id = httpx2.post(submit, headers=headers, content=body).json()["request_id"]
    return Request("GET", f"{server.url}/v2/requests/{request_id}/status", key)


def _table(rows: list[Row]) -> Table:
    table = Table(
        title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load by {generator()}"
    )
    for heading in (
        "server",
        "call",
        "conns",
        "a second",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "ratio",
        "errors",
    ):
        table.add_column(heading, justify="left" if heading in {"server", "call"} else "right")
    for row in rows:
        table.add_row(
            row.server,
            row.call,
            str(row.connections),
            f"{row.outcome.rate:,.0f}",
            f"{row.outcome.p50:.1f}",
            f"{row.outcome.p99:.1f}",
            "?" if row.cpu_us is None else f"{row.cpu_us:.0f}",
            "?" if row.ratio is None else f"{row.ratio:.2f}",
            str(row.outcome.errors),
        )
    return table
