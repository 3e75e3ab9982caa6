"""Workers that go on where another one was killed or told to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.stack import APART_SECONDS, Stack, eventually
from tests.support.wire import ended

EVERY = 5


def submit(stack: Stack, key: str, **params: object) -> str:
    body = {"prompt": "a pond", "seed": 7, **params}
    answer = stack.http(key).post("/v2/mochi-1", json=body)
    assert answer.is_success
    return str(answer.json()["request_id"])


def video(stack: Stack, key: str, request_id: str) -> bytes:
    """The bytes of the video, once it is there."""
    return httpx2.get(ended(stack.http(key), request_id)["output"]).content


def worker_of(stack: Stack, request_id: str) -> subprocess.Popen[bytes]:
    """The process that runs the request, once it has kept a checkpoint."""
    eventually(lambda: f"{request_id}.checkpoint" in stack.outputs())
    name = stack.record(request_id)["worker"]
    return next(worker for worker in stack.processes if f"-{worker.pid}-" in name)


def steps_of(stack: Stack, event: str, request_id: str) -> list[int]:
    """The steps of all such events of a request."""
    lines = (line for line in stack.logs().splitlines() if f'"{event}"' in line)
    events = map(json.loads, lines)
    return [event["step"] for event in events if event["request_id"] == request_id]


def test_a_killed_workers_video_is_the_same_to_the_byte_and_not_begun_anew(tmp_path: Path) -> None:
    with Stack(tmp_path, mock="true", checkpoint_steps=str(EVERY), lease_seconds="2") as stack:
        for _ in range(2):
            stack.start("worker")
        stack.start_gateway()
        eventually(lambda: stack.live_workers() == 2)
        key = stack.key()
        undisturbed = submit(stack, key, steps=75, frames=61)
        expected = video(stack, key, undisturbed)
        killed = submit(stack, key, steps=75, frames=61)
        worker_of(stack, killed).kill()
        assert video(stack, key, killed) == expected
        assert stack.record(killed)["attempt"] == "2"
        (resumed,) = steps_of(stack, "checkpoint.resumed", killed)
        saved = steps_of(stack, "checkpoint.saved", killed)
        assert resumed % EVERY == 0
        assert 0 < resumed < 75
        # By one worker up to there, or up to one before if it died before it could say so; by the
        # other from there on.
        assert sorted({*saved, resumed}) == list(range(EVERY, 75, EVERY))
        assert len(saved) == len(set(saved))
        assert steps_of(stack, "checkpoint.resumed", undisturbed) == []
        names = sorted(stack.record(each)["file_name"] for each in (undisturbed, killed))
        # The kill may have come while a checkpoint was written: its draft is swept later.
        eventually(lambda: [name for name in stack.outputs() if ".part" not in name] == names)


def test_a_request_that_was_requeued_goes_on_with_its_attempt_unused(tmp_path: Path) -> None:
    with Stack(
        tmp_path, engine="fake", fake_step_seconds="0.04", checkpoint_steps=str(EVERY)
    ) as stack:
        stack.start_gateway()
        told = stack.start_worker()
        key = stack.key()
        request_id = submit(stack, key, steps=75, frames=3)
        assert worker_of(stack, request_id) is told
        told.send_signal(signal.SIGTERM)
        time.sleep(APART_SECONDS)
        told.send_signal(signal.SIGTERM)
        assert told.wait(30) == 0
        assert stack.record(request_id)["status"] == "QUEUED"
        assert "step" not in stack.record(request_id)
        stack.start_worker()
        assert video(stack, key, request_id)
        assert stack.record(request_id)["attempt"] == "1"
        (requeued,) = steps_of(stack, "run.requeued", request_id)
        (resumed,) = steps_of(stack, "checkpoint.resumed", request_id)
        assert resumed == (requeued - 1) // EVERY * EVERY > 0
        saved = steps_of(stack, "checkpoint.saved", request_id)
        assert saved == list(range(EVERY, 75, EVERY))


@pytest.mark.parametrize("every", [0, EVERY])
def test_a_killed_workers_finish_of_a_draft_is_the_same_to_the_byte(
    tmp_path: Path, every: int
) -> None:
    settings = {"mock": "true", "checkpoint_steps": str(every), "lease_seconds": "2"}
    with Stack(tmp_path, **settings) as stack:
        for _ in range(2):
            stack.start("worker")
        stack.start_gateway()
        eventually(lambda: stack.live_workers() == 2)
        key = stack.key()
        expected = video(stack, key, submit(stack, key, steps=75, frames=61))
        draft = submit(stack, key, steps=75, frames=61, draft_steps=12)
        estimate = video(stack, key, draft)
        finish = stack.http(key).post(f"/v2/requests/{draft}/finish").json()["request_id"]
        running = eventually(lambda: stack.record(finish).get("step", "0") > "20" and finish)
        name = stack.record(running)["worker"]
        next(worker for worker in stack.processes if f"-{worker.pid}-" in name).kill()
        assert video(stack, key, finish) == expected != estimate
        assert stack.record(finish)["attempt"] == "2"
        first, second = sorted(steps_of(stack, "checkpoint.resumed", finish))
        assert first == 12
        assert second == 12 if every == 0 else second % EVERY == 0 < second - 12
        assert f"{draft}.checkpoint" in stack.outputs()
        assert f"{finish}.checkpoint" not in stack.outputs()
