"""Sends one HTTP request over and over on many connections, with wrk where it is installed."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_WRK_SCRIPT = """
wrk.method = {verb}
wrk.body = {body}
wrk.headers["content-type"] = "application/json"
wrk.headers["x-api-key"] = {key}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Request:
    """What to send."""

    verb: str
    url: str
    key: str
    body: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        requests: answered ones.
        seconds: for how long.
        p50, p99: milliseconds from request to answer.
        errors: answers that are no 2xx, and broken connections.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: int

    @classmethod
    def of_all(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Of several in turn: sums, and medians of the percentiles."""
        return cls(
            requests=sum(outcome.requests for outcome in outcomes),
            seconds=sum(outcome.seconds for outcome in outcomes),
            p50=statistics.median(outcome.p50 for outcome in outcomes),
            p99=statistics.median(outcome.p99 for outcome in outcomes),
            errors=sum(outcome.errors for outcome in outcomes),
        )

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def generator() -> str:
    """The name of what sends the load."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def send(request: Request, *, connections: int, seconds: float) -> Outcome:
    """Send `request` on `connections` connections at once for so long."""
    wrk = shutil.which("wrk")
    if wrk:
        return _send_with_wrk(wrk, request, connections, seconds)
    return asyncio.run(_send(request, connections, seconds))


def _send_with_wrk(wrk: str, request: Request, connections: int, seconds: float) -> Outcome:
    script = _WRK_SCRIPT.format(
        verb=json.dumps(request.verb), body=_lua_string(request.body), key=json.dumps(request.key)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "request.lua")
        path.write_text(script)
        output = subprocess.run(
            [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(path), request.url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return Outcome(**json.loads(output.strip().splitlines()[-1]))


def _lua_string(text: str) -> str:
    return f"[==[{text}]==]"


async def _send(request: Request, connections: int, seconds: float) -> Outcome:
    address = urlsplit(request.url)
    message = (
        f"{request.verb} {address.path} HTTP/1.1\r\nhost: {address.netloc}\r\n"
        f"x-api-key: {request.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(request.body.encode())}\r\n\r\n{request.body}"
    ).encode()
    times: list[float] = []
    errors = 0
    started = time.perf_counter()

    async def one_connection() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while (sent := time.perf_counter()) - started < seconds:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            errors += not head.startswith(b"HTTP/1.1 2")
            times.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(connections)))
    percentiles = statistics.quantiles(times, n=100)
    return Outcome(
        requests=len(times),
        seconds=time.perf_counter() - started,
        p50=percentiles[49] * 1e3,
        p99=percentiles[98] * 1e3,
        errors=errors,
    )
