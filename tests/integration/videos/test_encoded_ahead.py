"""A worker with mock weights encodes the prompt of the next request during a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.support.stack import Stack, eventually

EVENT = "prompt.encoded_ahead"
POND = {"prompt": "a pond", "negative_prompt": "blurry", "frames": 7, "steps": 64, "seed": 7}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, mock="true") as stack:
        stack.start_gateway()
        yield stack


def submit(client: httpx2.Client, scenario: str = "", **changed: object) -> str:
    headers = {"x-mock-scenario": scenario} if scenario else {}
    answer = client.post("/v2/mochi-1", json=POND | changed, headers=headers)
    assert answer.is_success, answer.text
    return str(answer.json()["request_id"])


def video(client: httpx2.Client, request_id: str) -> bytes:
    result = eventually(
        lambda: client.get(f"/v2/requests/{request_id}").raise_for_status().json().get("output")
    )
    return client.get(result).raise_for_status().content


def behind_another(client: httpx2.Client, log: Callable[[], str], scenario: str) -> str:
    """The id of a request that waits until another has run."""
    first = submit(client, scenario, prompt="a lake")
    eventually(lambda: f'"request_id": "{first}"' in log())
    return submit(client)


def test_the_video_is_the_same_to_the_byte_with_and_without(stack: Stack) -> None:
    client = stack.http()
    worker = stack.start_worker()
    log = partial(stack.log_of, worker)
    second = behind_another(client, log, "slow:12")
    eventually(lambda: EVENT in log())
    assert stack.record(second)["status"] == "QUEUED"
    (line,) = (line for line in log().splitlines() if EVENT in line)
    assert second in line
    encoded_ahead = video(client, second)
    worker.terminate()
    assert worker.wait(60) == 0

    log = partial(stack.log_of, stack.start_worker(encode_ahead="false"))
    second = behind_another(client, log, "slow:3")
    assert video(client, second) == encoded_ahead
    assert EVENT not in log()
