"""F19, F20, F22: a worker hangs, takes too long, or has no room for its video."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.support.client import Client, paused_broker
from tests.support.services.disks import on_a_tiny_disk
from tests.support.stack import Stack, eventually
from worker.outputs.base import MARKER
from worker.runtime.heartbeat import LONGEST_BEAT_SECONDS
from worker.store import keyspace

ROOM_BYTES = 16 << 10

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


def test_f19_a_worker_that_hangs_ends_itself_and_its_request_is_tried_twice_again(
    stack: Stack, client: Client, figure: Figure, times: Times
) -> None:
    hangs = client.submit("hang")
    for attempt in range(1, times(1, 3) + 1):
        worker = stack.start("worker", environ={"MOCHI_STALL_SECONDS": "1"})
        eventually(lambda: "run.started" in stack.log_of(worker))
        started = time.monotonic()
        assert worker.wait(30) == os.EX_TEMPFAIL
        figure(f"F19: a hang of 1 s ended a worker in {time.monotonic() - started:.1f} s")
        assert "worker.hung" in stack.log_of(worker)
        assert stack.record(hangs)["attempt"] == str(attempt)
    stack.start_worker()
    if attempt < keyspace.MOST_ATTEMPTS:
        eventually(lambda: stack.record(hangs)["attempt"] == str(attempt + 1))
    else:
        assert client.ended(hangs)["error_code"] == "worker_lost"
        client.assert_made_once(client.submit())


@pytest.mark.slow
def test_f19_a_worker_that_hangs_in_code_that_stops_its_other_threads_ends_itself_too(
    stack: Stack, client: Client, figure: Figure
) -> None:
    frozen = stack.start_worker(stall_seconds="1")
    freezes = client.submit("freeze", steps=40)
    client.running(freezes)
    since = time.monotonic()
    assert frozen.wait(LONGEST_BEAT_SECONDS + 15) == 1
    figure(f"F19: a frozen worker ended itself after {time.monotonic() - since:.1f} s")
    assert "mock_outcome.py" in stack.log_of(frozen)  # where it hung
    client.http.delete(f"/v2/requests/{freezes}").raise_for_status()
    stack.start_worker()
    assert client.ended(freezes)["error_code"] == "cancelled"


def test_f19_a_worker_that_waits_for_the_broker_is_not_taken_for_one_that_hangs(
    stack: Stack, client: Client
) -> None:
    worker = stack.start_worker(stall_seconds="1")
    request_id = client.submit(steps=20)
    client.running(request_id)
    with paused_broker(stack):
        eventually(lambda: "run.encoded" in stack.log_of(worker))
        time.sleep(3)
    client.assert_made_once(request_id)
    assert worker.poll() is None


def test_f20_a_run_over_its_time_limit_fails_at_its_next_step_and_is_not_retried(
    stack: Stack, client: Client, figure: Figure
) -> None:
    """That no `except Exception` of an engine holds it: see the tests of the runner."""
    worker = stack.start_worker(fake_step_seconds="0.4", run_seconds="1")
    slow = client.submit()
    body = client.ended(slow)
    assert (body["status"], body["error_code"]) == ("FAILED", "timeout")
    assert stack.record(slow)["attempt"] == "1"
    assert stack.outputs() == []
    assert worker.poll() is None
    figure(f"F20: {body['metrics']['inference_time'] - 1:.2f} s late, with steps of 0.4 s")


def test_f22_a_full_disk_fails_the_request_serves_nothing_and_the_worker_goes_on(
    stack: Stack, client: Client
) -> None:
    outputs = stack.folder / "outputs"
    outputs.mkdir(mode=0o700, exist_ok=True)
    within = on_a_tiny_disk(outputs, "257M")
    worker = stack.start_worker(within=within, fake_step_seconds="0.1")
    inside = Path(f"/proc/{worker.pid}/root{outputs}")
    shutil.copy(inside / MARKER, outputs)  # the gateway sees another disk there
    eventually(lambda: client.http.get("/readyz").is_success)
    long = {"prompt": "a pond", "steps": 10, "frames": 160}
    full = client.http.post("/v2/mochi-1", json=long).json()["request_id"]
    client.running(full)
    with (inside / "filler").open("wb") as filler:  # after the look at the space before the run
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(inside).free - ROOM_BYTES)
    body = client.ended(full)
    assert (body["status"], body["error_code"]) == ("FAILED", "storage")
    assert "No space left on device" in body["error"]
    assert "output" not in body
    assert {path.name for path in inside.iterdir()} == {MARKER, "filler"}
    assert worker.poll() is None
    (inside / "filler").unlink()
    small = client.submit()
    assert client.ended(small)["status"] == "COMPLETED"
    (video,) = inside.glob("*.mp4")
    assert video.stat().st_size == int(stack.record(small)["file_size"]) > 0
