"""The processes that a benchmark measures: a broker, a gateway, a worker, the prototype."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from models.mock.card_speed import INSTANT
from server.errors import CommandError
from tests.bench.prototype import BROKER_VARIABLE, PORT_VARIABLE
from tests.support.services.brokers import free_port
from worker.broker.embedded import EmbeddedBroker

START_SECONDS = 120.0
NO_LIMIT = 100_000_000
HOST = "127.0.0.1"


class BenchError(CommandError):
    """A process that should be measured does not run."""


@dataclass(frozen=True)
class Server:
    """A running HTTP server."""

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


@contextmanager
def own_broker(folder: Path) -> Iterator[str]:
    """An embedded broker of the benchmark's own; its URL."""
    broker = EmbeddedBroker(folder)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()


@contextmanager
def gateway(broker_url: str, folder: Path, **settings: str) -> Iterator[Server]:
    """A gateway without a limit to its queue, and with further settings by their variables."""
    port = free_port()
    environ = {
        "MOCHI_REDIS_URL": broker_url,
        "MOCHI_DATA_DIR": str(folder),
        "MOCHI_PORT": str(port),
        "MOCHI_MOST_WAITING": str(NO_LIMIT),
        **settings,
    }
    with _process("server", environ, folder / "gateway.log") as pid:
        yield _answering(Server("gateway", f"http://{HOST}:{port}", pid))


@contextmanager
def prototype(broker_url: str, folder: Path) -> Iterator[Server]:
    """What the gateway is compared with."""
    port = free_port()
    environ = {BROKER_VARIABLE: broker_url, PORT_VARIABLE: str(port)}
    with _process("tests.bench.prototype", environ, folder / "prototype.log") as pid:
        yield _answering(Server("prototype", f"http://{HOST}:{port}", pid))


@contextmanager
def mock_worker(broker_url: str, folder: Path) -> Iterator[Path]:
    """A worker on mock weights; the file that it logs to."""
    environ = {
        "MOCHI_REDIS_URL": broker_url,
        "MOCHI_DATA_DIR": str(folder),
        "MOCHI_MOCK": "true",
    }
    with _process("worker", environ, folder / "worker.log"):
        yield folder / "worker.log"


@contextmanager
def fake_worker(
    broker_url: str,
    folder: Path,
    *,
    step_seconds: float = 0.0,
    speed: str = INSTANT,
    name: str = "worker",
) -> Iterator[None]:
    """A worker with the fake engine, whose steps take so long, or a card's time."""
    environ = {
        "MOCHI_REDIS_URL": broker_url,
        "MOCHI_DATA_DIR": str(folder),
        "MOCHI_ENGINE": "fake",
        "MOCHI_FAKE_STEP_SECONDS": str(step_seconds),
        "MOCHI_MOCK_SPEED": speed,
    }
    with _process("worker", environ, folder / f"{name}.log"):
        yield


def wait_until_ready(url: str) -> None:
    """Until `url` is answered with a 2xx.

    Raises:
        BenchError: it is not.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx2.get(url).is_success:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise BenchError(f"{url} is not ready after {START_SECONDS:g} seconds.")


def _answering(server: Server) -> Server:
    wait_until_ready(f"{server.url}/openapi.json")  # both servers have it
    return server


def spawn(
    module: str, environ: Mapping[str, str], log: Path, *flags: str, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process with these settings of ours and no others; it prints to `log`."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *flags],
            env=outside | dict(environ),
            stdin=stdin,
            stdout=file,
            stderr=file,
        )


@contextmanager
def _process(module: str, environ: Mapping[str, str], log: Path) -> Iterator[int]:
    process = spawn(module, environ, log)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()
