"""What a status tells beyond the hosted API: stage, steps, time left, when it is forgotten."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from models.mock.scenario import SCENARIO
from tests.support.stack import Stack, eventually

ENDED = {"COMPLETED", "FAILED"}
UNTIL_THE_END = {"stage", "cancel_url", "events_url"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("status")
    with Stack(folder, engine="fake", fake_step_seconds="0.05", retention_seconds="600") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def submit(client: httpx2.Client, steps: int = 10, frames: int = 1, scenario: str = "") -> str:
    body = {"prompt": "a pond", "steps": steps, "frames": frames}
    headers = {SCENARIO: scenario} if scenario else {}
    return str(client.post("/v2/mochi-1", json=body, headers=headers).json()["request_id"])


def status(client: httpx2.Client, request_id: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/v2/requests/{request_id}/status").json()
    return body


def status_when(
    client: httpx2.Client, request_id: str, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    def ask() -> dict[str, Any] | None:
        body = status(client, request_id)
        return body if is_so(body) else None

    return eventually(ask) or {}


def test_a_request_tells_where_it_stands_until_it_has_ended(stack: Stack) -> None:
    client = stack.http()
    first = submit(client)
    eventually(lambda: status(client, first)["status"] == "COMPLETED")
    running, waiting = submit(client, steps=60), submit(client)
    # A forecast is kept for a while, and one from before the first run ended knows no time.
    body = status_when(client, running, lambda body: body["step"] >= 10 and "eta_seconds" in body)
    assert (body["status"], body["stage"]) == ("PROCESSING", "denoising")
    assert (body["total_steps"], body["attempt"]) == (60, 1)
    assert 0 < body["progress"] < 99
    events_url, _, signature = body["events_url"].partition("?signature=")
    assert (events_url, len(signature)) == (f"{stack.url}/v2/requests/{running}/events", 43)
    behind = status(client, waiting)
    assert (behind["status"], behind["stage"]) == ("QUEUED", "queued")
    assert (behind["step"], behind["attempt"], behind["queue_position"]) == (0, 0, 1)
    assert behind["eta_seconds"] > body["eta_seconds"] > 0
    assert not {"expires_at", "error_code", "warnings"} & {*body, *behind}
    eventually(lambda: status(client, waiting)["status"] == "COMPLETED")


@pytest.mark.parametrize("scenario", ["", "fail"])
def test_after_the_end_it_tells_when_it_is_forgotten(stack: Stack, scenario: str) -> None:
    client = stack.http()
    request_id = submit(client, scenario=scenario)
    body = status_when(client, request_id, lambda body: body["status"] in ENDED)
    assert not {*UNTIL_THE_END, "eta_seconds"} & set(body)
    ended_at = int(stack.record(request_id)["ended_at"]) / 1000
    expires_at = datetime.fromisoformat(body["expires_at"])
    assert expires_at.tzinfo == UTC
    assert abs(expires_at.timestamp() - ended_at - 600) < 1
    assert client.get(f"/v2/requests/{request_id}").json()["expires_at"] == body["expires_at"]


@pytest.mark.slow
def test_the_time_left_is_about_right_in_a_mixed_queue(
    stack: Stack, figure: Callable[[str], None]
) -> None:
    """Fifty requests of 1 to 160 frames and 10 to 75 steps, on two workers."""
    stack.start_worker()
    client, rng = stack.http(), random.Random(1)
    mixed = [(rng.randint(10, 75), rng.choice([1, 7, 25, 52, 90, 120, 160])) for _ in range(50)]
    for request_id in [submit(client, *each) for each in mixed[:5]]:
        eventually(lambda: status(client, request_id)["status"] == "COMPLETED")
    open_ids = {submit(client, *each) for each in mixed}
    told: list[tuple[str, float, float]] = []
    while open_ids:
        for request_id in sorted(open_ids):
            body = status(client, request_id)
            if body["status"] in ENDED:
                open_ids.discard(request_id)
            else:
                told.append((request_id, time.time(), body["eta_seconds"]))
        time.sleep(0.5)
    errors = []
    for request_id, asked_at, eta in told:
        took = int(stack.record(request_id)["ended_at"]) / 1000 - asked_at
        if took > 1:
            errors.append(abs(eta - took) / took)
    p50, p90 = statistics.median(errors), statistics.quantiles(errors, n=10)[-1]
    figure(
        f"eta_seconds of 50 mixed requests, {len(errors)} times: off by {p50:.0%}, p90 {p90:.0%}"
    )
    assert p50 < 0.5
