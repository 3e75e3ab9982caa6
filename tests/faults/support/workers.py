"""Workers for tests of their faults, and what their stack remembers of them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.support.client import Client, events
from tests.support.stack import Stack, eventually

REPOSITORY = Path(__file__).parents[3]


@contextmanager
def stack_with_gateway(folder: Path, **settings: str) -> Iterator[Stack]:
    """For the tests of one module: the fake engine, steps of 50 ms, leases of two seconds."""
    usual = {"engine": "fake", "fake_step_seconds": "0.05", "lease_seconds": "2"}
    with Stack(folder, **(usual | settings)) as stack:
        stack.start_gateway()
        yield stack


def clear(stack: Stack) -> None:
    """End all processes but the gateway, and forget every request, for the next test."""
    for process in stack.processes[1:]:
        process.kill()
        process.wait()
    stack.redis.flushall()
    for name in stack.outputs():
        (stack.folder / "outputs" / name).unlink()


def start_workers(stack: Stack, count: int, **settings: str) -> list[subprocess.Popen[bytes]]:
    """Start some at once. They have signed on."""
    environ = {f"MOCHI_{name.upper()}": value for name, value in settings.items()}
    before = stack.live_workers()
    workers = [stack.start("worker", environ=environ) for _ in range(count)]
    eventually(lambda: stack.live_workers() == before + count)
    return workers


def start_struck(stack: Stack, strike: str, **settings: str) -> subprocess.Popen[bytes]:
    """Start a worker that is struck as `struck_worker.py` says. It signs on a little later."""
    environ = {f"MOCHI_{name.upper()}": value for name, value in settings.items()}
    environ |= {"STRIKE": strike, "PYTHONPATH": str(REPOSITORY)}
    return stack.start("tests.faults.support.struck_worker", environ=environ)


def killed(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> float:
    """Wait until the signal has ended the process. Returns when that was seen."""
    assert process.wait(60) == -number
    return time.monotonic()


def worker_of(stack: Stack, request_id: str) -> subprocess.Popen[bytes]:
    """The process that has the request, or had it last."""
    name = stack.record(request_id)["worker"]
    return next(process for process in reversed(stack.processes) if f"-{process.pid}-" in name)


def tally(stack: Stack, event: str) -> Counter[str]:
    """How often the workers' logs tell this of each request."""
    return Counter(
        entry["request_id"]
        for process in stack.processes
        for entry in events(stack, process, event)
    )


def assert_made(client: Client, request_id: str, *, attempts: int) -> None:
    """COMPLETED in the last of so many attempts, with a video that can be fetched."""
    body = client.ended(request_id)
    assert body["status"] == "COMPLETED", body
    assert body["metrics"].get("retry_count", 0) == attempts - 1
    record = client.stack.record(request_id)
    assert record["attempt"] == str(attempts)
    assert len(client.http.get(body["output"]).content) == int(record["file_size"])
