"""A server whose worker shares each video with another process, on mock weights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import psutil
import pytest

from models.mochi.synthetic.mock import write_mock_checkpoint
from server.keys.lookup import Scope
from tests.support.family import children_with
from tests.support.models.mock_mochi import slow_text_encoder
from tests.support.stack import Stack, eventually
from tests.support.wire import ended

SLOW = {"x-mock-scenario": "slow:6"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"mock": "true", "lease_seconds": "2", "checkpoint_steps": "5"}
    folder = tmp_path_factory.mktemp("group")
    slow_text_encoder(write_mock_checkpoint(folder))
    with Stack(folder, **settings) as started:
        started.start_gateway()
        yield started


@pytest.fixture
def worker(stack: Stack) -> subprocess.Popen[bytes]:
    """The worker of the group; a new one if a test has ended it."""
    last = stack.processes[-1]
    if last is not stack.processes[0] and last.poll() is None:
        return last
    return stack.start_worker(gpus_per_video="2")


@pytest.fixture
def client(stack: Stack) -> httpx2.Client:
    return stack.http()


def follower_of(worker: subprocess.Popen[bytes]) -> psutil.Process:
    (follower,) = children_with(worker.pid, "worker.runtime.follower")
    return follower


def submit(client: httpx2.Client, headers: dict[str, str] | None = None, **params: object) -> str:
    body = {"prompt": "a pond", "seed": 7, "steps": 30, "frames": 13, **params}
    answer = client.post("/v2/mochi-1", json=body, headers=headers or {})
    assert answer.is_success, answer.text
    return str(answer.json()["request_id"])


def video(client: httpx2.Client, request_id: str) -> bytes:
    body = ended(client, request_id)
    assert body["status"] == "COMPLETED", body
    return httpx2.get(body["output"]).content


def reaches(stack: Stack, request_id: str, stage: str, step: int = 0) -> None:
    def has() -> bool:
        record = stack.record(request_id)
        return record.get("stage") == stage and int(record.get("step", 0)) >= step

    eventually(has)


def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


@pytest.mark.usefixtures("worker")
def test_the_sdk_gets_its_video_from_a_group(stack: Stack) -> None:
    answer = stack.sdk().run_sync("mochi-1", prompt="a pond", frames=26, steps=10)
    assert answer.content[4:8] == b"ftyp"
    assert "2 x CPU" in stack.logs()


@pytest.mark.usefixtures("worker")
def test_a_cancel_of_a_waiting_request_leaves_the_running_one_alone(
    stack: Stack, client: httpx2.Client
) -> None:
    running = submit(client, {"x-mock-scenario": "slow:2"})
    waiting = submit(client)
    reaches(stack, running, "denoising")
    assert client.put(f"/v2/requests/{waiting}/cancel").status_code == 202
    assert ended(client, waiting)["error_code"] == "cancelled"
    assert ended(client, running)["status"] == "COMPLETED"


@pytest.mark.usefixtures("worker")
def test_version_and_metrics_know_the_size_of_the_group(stack: Stack) -> None:
    (engine,) = stack.http().get("/version").json()["engines"]
    assert engine["gpus"] == 2
    metrics = stack.http(stack.key(scopes=[Scope.ADMIN])).get("/metrics").text
    assert "\nmochi_live_workers 1.0\nmochi_live_gpus 2.0" in re.sub("\n#.*", "", metrics)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("stage", "frames", "scenario"), [("denoising", 1, SLOW), ("decoding", 160, {})]
)
def test_a_cancel_at_each_stage_leaves_the_group_to_the_next_request(
    stack: Stack, client: httpx2.Client, stage: str, frames: int, scenario: dict[str, str]
) -> None:
    expected = video(client, submit(client))
    cancelled = submit(client, scenario, frames=frames)
    reaches(stack, cancelled, stage)
    assert client.put(f"/v2/requests/{cancelled}/cancel").status_code == 202
    assert ended(client, cancelled)["error_code"] == "cancelled"
    assert video(client, submit(client)) == expected


@pytest.mark.usefixtures("worker")
def test_a_cancel_while_the_prompt_is_encoded_leaves_the_group_to_the_next_request(
    stack: Stack, client: httpx2.Client
) -> None:
    expected = video(client, submit(client))
    cancelled = submit(client, prompt="a" * 2000, negative_prompt="b" * 2000)
    reaches(stack, cancelled, "encoding_prompt")
    assert client.put(f"/v2/requests/{cancelled}/cancel").status_code == 202
    assert ended(client, cancelled)["error_code"] == "cancelled"
    assert stack.record(cancelled)["step"] == "0"
    assert video(client, submit(client)) == expected


def test_a_request_runs_again_when_the_follower_is_killed(
    stack: Stack, client: httpx2.Client, worker: subprocess.Popen[bytes]
) -> None:
    expected = video(client, submit(client))
    request_id = submit(client, SLOW)
    reaches(stack, request_id, "denoising", step=1)
    follower_of(worker).kill()
    assert worker.wait(20) == os.EX_TEMPFAIL
    assert '"event": "rank.died"' in stack.log_of(worker)
    stack.start_worker(gpus_per_video="2")
    assert ended(client, request_id)["status"] == "COMPLETED"
    assert stack.record(request_id)["attempt"] == "2"
    assert video(client, submit(client)) == expected


def test_a_signal_to_all_processes_lets_the_group_finish_its_request(
    stack: Stack, client: httpx2.Client, worker: subprocess.Popen[bytes]
) -> None:
    follower = follower_of(worker)
    request_id = submit(client, {"x-mock-scenario": "slow:3"})
    reaches(stack, request_id, "denoising", step=1)
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(30) == 0
    assert ended(client, request_id)["status"] == "COMPLETED"
    assert gone(follower)


def test_a_single_card_goes_on_at_the_checkpoint_of_a_group_that_was_killed(
    stack: Stack, client: httpx2.Client, worker: subprocess.Popen[bytes]
) -> None:
    expected = video(client, submit(client))
    follower = follower_of(worker)
    request_id = submit(client, SLOW)
    eventually(lambda: f"{request_id}.checkpoint" in stack.outputs())
    follower.suspend()  # so no thread of its notices, as where a launch of CUDA holds Python's lock
    worker.kill()
    worker.wait()
    eventually(lambda: gone(follower))
    single = stack.start_worker()
    assert video(client, request_id) == expected
    assert '"checkpoint.resumed"' in stack.log_of(single)
    assert stack.record(request_id)["attempt"] == "2"
    single.terminate()
    assert single.wait(30) == 0


def test_a_group_finishes_a_draft_to_the_byte_also_when_it_is_killed_on_the_way(
    stack: Stack, client: httpx2.Client, worker: subprocess.Popen[bytes]
) -> None:
    expected = video(client, submit(client))
    draft = submit(client, draft_steps=4)
    assert video(client, draft) != expected
    finish = client.post(f"/v2/requests/{draft}/finish", headers=SLOW).json()["request_id"]
    reaches(stack, finish, "denoising", step=12)
    worker.kill()
    stack.start_worker(gpus_per_video="2")
    assert video(client, finish) == expected
    assert stack.record(finish)["attempt"] == "2"
