"""`mochi-server bench gateway`: how many submits and polls one gateway process answers a second.

Starts a broker and a gateway of its own, and the bare prototype beside it, and sends each call to
both in turn, so that they are compared on the same machine in the same minute. No worker runs.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from server.bench.load import Outcome, Request, generator, send
from server.bench.prototype import BROKER_VARIABLE, PORT_VARIABLE
from server.example import EXAMPLE_REQUEST
from server.keyring import Scope, create_key
from server.up import free_port
from worker.broker import EmbeddedBroker
from worker.connection import connect_briefly

WARM_UP_SECONDS = 1.0
START_SECONDS = 30.0
NO_LIMIT = 100_000_000
HOST = "127.0.0.1"

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
    with tempfile.TemporaryDirectory() as folder, _broker(Path(folder)) as url:
        key = create_key(connect_briefly(url), "bench", frozenset(Scope), time.time())
        with _gateway(url, Path(folder)) as gateway, _prototype(url) as prototype:
            for call in ("submit", "status"):
                for count in connections:
                    for server in (gateway, prototype):
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


@dataclass(frozen=True)
class _Server:
    name: str
    url: str
    pid: int

    def cpu_seconds(self) -> float | None:
        """User and system time so far, from Linux' /proc/PID/stat (proc(5), fields 14 and 15)."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _request(server: _Server, call: str, key: str, body: str) -> Request:
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


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    broker = EmbeddedBroker(folder)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()


@contextmanager
def _gateway(broker_url: str, folder: Path) -> Iterator[_Server]:
    port = free_port(HOST)
    environ = {
        "MOCHI_REDIS_URL": broker_url,
        "MOCHI_DATA_DIR": str(folder),
        "MOCHI_PORT": str(port),
        "MOCHI_MOST_WAITING": str(NO_LIMIT),
    }
    with _process("gateway", "server", port, environ) as server:
        yield server


@contextmanager
def _prototype(broker_url: str) -> Iterator[_Server]:
    port = free_port(HOST)
    environ = {BROKER_VARIABLE: broker_url, PORT_VARIABLE: str(port)}
    with _process("prototype", "server.bench.prototype", port, environ) as server:
        yield server


@contextmanager
def _process(name: str, module: str, port: int, environ: Mapping[str, str]) -> Iterator[_Server]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://{HOST}:{port}"
        _wait_until_it_answers(url)
        yield _Server(name, url, process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(url)
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} does not answer")


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
