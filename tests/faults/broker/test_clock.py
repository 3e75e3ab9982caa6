"""F25: clocks that are an hour off, or are set while everything runs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.support.client import Client, events
from tests.support.services.receiver import ALLOWED, receiver
from tests.support.stack import Stack, eventually
from worker.store import keyspace
from worker.store.webhooks.deliveries import signing_secrets

HOUR = 3600
LEASE_SECONDS = 2
RETENTION_SECONDS = 4
TAKEOVER_SECONDS = 20
"""Promised, from the death of a worker."""
SOURCE = Path(__file__).parents[1] / "support" / "skew.c"

Figure = Callable[[str], None]
Clocks = Callable[[str], "Clock"]


class Clock:
    """The wall clock of processes that are started with `environ`."""

    def __init__(self, library: Path, file: Path) -> None:
        self.environ = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(file)}
        self._file = file
        file.write_bytes(struct.pack("q", 0))

    def set(self, seconds: int) -> None:
        """Off by so much from now on."""
        with self._file.open("rb+") as file:  # not truncated: processes look into it
            file.write(struct.pack("q", seconds))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a process's clock is set with LD_PRELOAD: needs Linux and a C compiler")
    path = tmp_path_factory.mktemp("skew") / "skew.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o", str(path)]
    subprocess.run([*command, str(SOURCE), "-ldl"], check=True)
    return path


@pytest.fixture
def clocks(library: Path, tmp_path: Path) -> Clocks:
    """A new clock for each name."""
    return lambda name: Clock(library, tmp_path / f"clock-{name}")


@contextmanager
def started_with(clock: Clock) -> Iterator[None]:
    """Processes that are started within it have this clock."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environ.items():
            patch.setenv(name, value)
        yield


def hours_ahead(told: str) -> int:
    """Of a time in a log, by our clock."""
    return round((datetime.fromisoformat(told).timestamp() - time.time()) / HOUR)


def broker_hours_ahead(stack: Stack) -> int:
    seconds, _ = stack.redis.time()
    return round((seconds - time.time()) / HOUR)


def test_f25_a_gateway_and_a_command_that_are_days_ahead_count_the_usage_of_the_brokers_day(
    tmp_path: Path, clocks: Clocks
) -> None:
    ahead = clocks("gateway")
    ahead.set(72 * HOUR)
    with Stack(tmp_path, engine="fake", fake_step_seconds="0") as stack, started_with(ahead):
        stack.start_gateway()
        client = stack.http()
        client.post("/v2/mochi-1", json={"prompt": "a pond"})
        [used] = client.get("/v1/usage?days=2").json()["usage"]  # 2: it may be midnight
        [counted] = json.loads(stack.run("usage", "--days", "2", "--format", "json").stdout)
    assert (used["requests"], counted["requests"]) == (1, 1)


def test_f25_clocks_of_workers_and_gateways_that_are_wrong_or_set_change_nothing(
    tmp_path: Path, clocks: Clocks
) -> None:
    of_gateway, of_worker = clocks("gateway"), clocks("worker")
    of_gateway.set(HOUR)
    of_worker.set(-HOUR)
    settings = {"fake_step_seconds": "0.05", "lease_seconds": str(LEASE_SECONDS)}
    with Stack(
        tmp_path, engine="fake", retention_seconds=str(RETENTION_SECONDS), **settings
    ) as stack:
        with started_with(of_gateway):
            stack.start_gateway()
        with started_with(of_worker):
            worker = stack.start_worker()
        client = Client(stack)
        request_id = client.submit(steps=40)
        client.running(request_id)
        of_gateway.set(-HOUR)
        of_worker.set(HOUR)
        client.assert_made_once(request_id)
        ended = time.monotonic()

        lived = 1000 * RETENTION_SECONDS - stack.redis.pttl(keyspace.record(request_id))
        assert 0 <= lived <= 2000
        for event, hours in (("run.started", -1), ("run.completed", 1)):
            assert [hours_ahead(each["timestamp"]) for each in events(stack, worker, event)] == [
                hours
            ]
        body = client.result(request_id)
        times = body["metrics"]
        assert 2 <= times["inference_time"] <= times["total_time"] <= 30
        assert 0 <= times["queue_time"] <= 30
        # In so long the worker sweeps once, and by its clock the file is an hour old.
        while time.monotonic() - ended < RETENTION_SECONDS - lived / 1000 - 1:
            assert client.http.get(body["output"]).status_code == 200
            time.sleep(0.1)
        eventually(lambda: client.http.get(body["output"]).status_code == 404, seconds=5)
        eventually(lambda: not stack.outputs(), seconds=2 * RETENTION_SECONDS)


def test_f25_a_gateway_whose_clock_is_wrong_sends_webhooks_that_are_verified(
    tmp_path: Path, clocks: Clocks
) -> None:
    clock = clocks("gateway")
    clock.set(-HOUR)
    settings = {"fake_step_seconds": "0.01", "webhook_allow": ALLOWED}
    with receiver() as there, Stack(tmp_path, engine="fake", **settings) as stack:
        with started_with(clock):
            stack.start_gateway()
        (began,) = events(stack, stack.processes[0], "gateway.listening")
        assert hours_ahead(began["timestamp"]) == -1
        stack.start_worker()
        key = stack.key()
        body = {"prompt": "a pond", "steps": 10, "frames": 1, "webhook_url": there.url}
        request_id = stack.http(key).post("/v2/mochi-1", json=body).json()["request_id"]
        (call,) = eventually(lambda: there.of(request_id))
        (secret,) = signing_secrets(stack.redis, stack.owner(key))
        assert call.verified(secret)["data"]["request_id"] == request_id


@pytest.mark.parametrize(
    "hours", [pytest.param(1, id="on"), pytest.param(-1, id="back", marks=pytest.mark.slow)]
)
def test_f25_a_broker_whose_clock_is_set_runs_nothing_twice_and_still_sees_who_is_dead(
    tmp_path: Path, clocks: Clocks, figure: Figure, hours: int
) -> None:
    """What has ended is kept by the broker's clock: set on an hour, it forgets that at once."""
    clock = clocks("broker")
    settings = {"fake_step_seconds": "0.08", "lease_seconds": str(LEASE_SECONDS)}
    with Stack(tmp_path, engine="fake", **settings) as stack:
        stack.broker.stop()
        with started_with(clock):
            stack.broker.start()
        stack.start_gateway()
        workers = [stack.start_worker() for _ in range(2)]
        client = Client(stack)
        before = client.submit()
        client.assert_made_once(before)

        runs, runs_too, waits = client.submit(steps=30), client.submit(steps=30), client.submit()
        for request_id in (runs, runs_too):
            client.running(request_id)
        clock.set(hours * HOUR)
        eventually(lambda: broker_hours_ahead(stack) == hours, seconds=2)
        client.assert_made_once(runs, runs_too, waits)
        assert [events(stack, worker, "request.recovered") for worker in workers] == [[], []]
        assert all(seconds >= 0 for seconds in client.result(runs)["metrics"].values())
        left = stack.redis.ttl(keyspace.record(before))
        if hours > 0:
            assert client.http.get(f"/v2/requests/{before}").status_code == 404
        else:
            assert HOUR < left <= 2 * HOUR
        assert 0 < stack.redis.ttl(keyspace.record(waits)) <= HOUR

        died = client.submit(steps=15)
        name = client.running(died)
        victim, survivor = sorted(workers, key=lambda worker: f"-{worker.pid}-" not in name)
        victim.kill()
        clock.set(0)  # and back: no lease of the dead is longer for it
        killed = time.monotonic()
        eventually(lambda: f"-{survivor.pid}-" in stack.record(died).get("worker", ""))
        noticed = time.monotonic() - killed
        figure(f"F25: clock set by {-hours} h, a worker's death noticed after {noticed:.1f} s")
        assert noticed <= TAKEOVER_SECONDS
        assert broker_hours_ahead(stack) == 0
        body = client.ended(died)
        assert (body["status"], body["metrics"]["retry_count"]) == ("COMPLETED", 1)
        assert client.http.get("/readyz").json()["live_workers"] == 1
