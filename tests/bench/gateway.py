"""`python -m tests.bench gateway`: how many submits and polls one gateway process answers a second.

Starts a broker and a gateway of its own, and the bare prototype beside it, and sends each call to
both in turn, so that they are compared on the same machine in the same minute. No worker runs.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from models.example import EXAMPLE_REQUEST
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.load import Outcome, Request, generator, send
from tests.bench.processes import Server, gateway, own_broker, prototype
from worker.broker.connection import connect_briefly

WARM_UP_SECONDS = 1.0

_console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        server: `gateway` or `prototype`.
        call: `submit` or `status`.
        connections: at once.
        cpu_ms: CPU time of the server process per request; None where it cannot be read.
    """

    server: str
    call: str
    connections: int
    outcome: Outcome
    cpu_ms: float | None


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
                for count in connections:
                    for server in (ours, bare):
                        request = _request(server, call, key, body)
                        _console.print(f"{server.name}: {call} on {count} connections …")
                        send(request, connections=count, seconds=WARM_UP_SECONDS)
                        before = server.cpu_seconds()
                        outcome = send(request, connections=count, seconds=seconds)
                        yield Row(
                            server=server.name,
                            call=call,
                            connections=count,
                            outcome=outcome,
                            cpu_ms=_per_request(before, server.cpu_seconds(), outcome),
                        )


def _request(server: Server, call: str, key: str, body: str) -> Request:
    submit = f"{server.url}/v2/mochi-1"
    if call == "submit":
        return Request("POST", submit, key, body)
    headers = {"x-api-key": key, "content-type": "application/json"}
    request_id = httpx.post(submit, headers=headers, content=body).json()["request_id"]
    return Request("GET", f"{server.url}/v2/requests/{request_id}/status", key)


def _per_request(before: float | None, after: float | None, outcome: Outcome) -> float | None:
    if before is None or after is None:
        return None
    return (after - before) * 1000 / outcome.requests


def _table(rows: list[Row]) -> Table:
    table = Table(
        title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load by {generator()}"
    )
    for heading in (
        "server",
        "call",
        "connections",
        "a second",
        "p50 ms",
        "p99 ms",
        "CPU ms",
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
            "?" if row.cpu_ms is None else f"{row.cpu_ms:.3f}",
            str(row.outcome.errors),
        )
    return table
