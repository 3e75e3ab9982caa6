"""The header `x-mock-scenario`: every outcome that a client may meet, when it wishes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from models.mock.scenario import SCENARIO
from tests.support.jobs import live
from tests.support.stack import Stack, eventually
from tests.support.wire import ended, refusal

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("scenarios"),
        engine="fake",
        fake_step_seconds="0.01",
        lease_seconds="2",
        retention_seconds="600",
    ) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def submit(client: httpx2.Client, scenario: str, **headers: str) -> httpx2.Response:
    return client.post("/v2/mochi-1", json=POND, headers={SCENARIO: scenario, **headers})


def end_of(client: httpx2.Client, submitted: httpx2.Response) -> dict[str, Any]:
    return ended(client, submitted.json()["request_id"])


@pytest.mark.parametrize(
    ("scenario", "code", "text"),
    [
        ("fail", "internal", "scenario"),
        ("blocked", "content_blocked", "Moderation has blocked the frames: mock scenario"),
        ("out_of_memory", "out_of_memory", "fewer frames"),
    ],
)
def test_a_request_fails_as_it_was_wished(
    stack: Stack, scenario: str, code: str, text: str
) -> None:
    client = stack.http()
    submitted = submit(client, scenario)
    assert "x-ignored-parameters" not in submitted.headers
    body = end_of(client, submitted)
    assert (body["status"], body["error_code"]) == ("FAILED", code)
    assert text in body["error"]
    blocking = client.post("/v1/mochi-1", json=POND, headers={SCENARIO: scenario})
    assert (blocking.status_code, blocking.json()["error_code"]) == (422, code)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": "a pond", "steps": 5}, "`steps` must be a whole number from 10 to 75; got 5."),
        ({"steps": 10}, "`prompt` is required"),
    ],
)
def test_wrong_parameters_fail_late_as_the_hosted_api_lets_them(
    stack: Stack, body: dict[str, Any], reason: str
) -> None:
    client, wish = stack.http(), {SCENARIO: "late_validation"}
    submitted = client.post("/v2/mochi-1", json=body, headers=wish)
    assert submitted.status_code == 200
    failed = end_of(client, submitted)
    assert (failed["status"], failed["error_code"]) == ("FAILED", "internal")
    assert reason in failed["error"]
    blocking = client.post("/v1/mochi-1", json=body, headers=wish)
    assert blocking.status_code == 422
    assert reason in blocking.json()["error"]
    right = end_of(client, client.post("/v2/mochi-1", json=POND, headers=wish))
    assert right["status"] == "COMPLETED"


@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v2/mochi-1"])
def test_a_submit_without_credits_is_refused_as_by_the_hosted_api(stack: Stack, path: str) -> None:
    answer = stack.http().post(path, json=POND, headers={SCENARIO: "payment_required"})
    assert "Insufficient credits" in refusal(answer, 402)


def test_a_field_of_the_body_does_the_same(stack: Stack) -> None:
    client = stack.http()
    submitted = client.post("/v2/mochi-1", json={**POND, SCENARIO: "fail", "other": 1})
    assert submitted.headers["x-ignored-parameters"] == "other"
    assert end_of(client, submitted)["error_code"] == "internal"


def test_a_crash_takes_the_worker_with_it_until_the_request_is_given_up(stack: Stack) -> None:
    client = stack.http()
    submitted = submit(client, "crash")
    for _ in range(3):
        worker = stack.processes[-1]
        assert eventually(worker.poll) == 70
        stack.start_worker()
    body = end_of(client, submitted)
    assert body["error_code"] == "worker_lost"
    assert body["metrics"]["retry_count"] == 2
    assert end_of(client, client.post("/v2/mochi-1", json=POND))["status"] == "COMPLETED"


def test_a_slow_run_takes_that_much_longer_and_can_be_cancelled(stack: Stack) -> None:
    client = stack.http()
    body = end_of(client, submit(client, "slow:1.5"))
    assert body["metrics"]["inference_time"] > 1.5
    submitted = submit(client, "slow:3000").json()
    eventually(lambda: client.get(submitted["status_url"]).json()["status"] == "PROCESSING")
    client.delete(f"/v2/requests/{submitted['request_id']}")
    eventually(lambda: client.get(submitted["status_url"]).status_code == 422)
    assert client.get(submitted["status_url"]).json()["error_code"] == "cancelled"


def test_record_and_file_are_gone_when_it_was_wished(stack: Stack) -> None:
    client = stack.http()
    submitted = submit(client, "expire:1", **{"Idempotency-Key": "short"})
    request_id = submitted.json()["request_id"]
    url = submitted.json()["response_url"]
    eventually(lambda: client.get(url).status_code == 404)
    completed = (line for line in stack.logs().splitlines() if "run.completed" in line)
    assert any(request_id in line for line in completed)
    assert eventually(lambda: not any(request_id in name for name in stack.outputs()))
    again = submit(client, "expire:1", **{"Idempotency-Key": "short"})
    assert again.json()["request_id"] != request_id


@pytest.mark.parametrize(
    "scenario", ["", "explode", "slow:", "slow:4000", "expire:0", "expire:601"]
)
def test_what_is_no_scenario_is_400_with_the_list(stack: Stack, scenario: str) -> None:
    client = stack.http()
    for dry_run in ("false", "true"):
        answer = client.post(
            f"/v2/mochi-1?dry_run={dry_run}", json=POND, headers={SCENARIO: scenario}
        )
        assert "`slow:SECONDS` (0 to 3600)" in refusal(answer, 400)
        assert "`expire:SECONDS` (1 to 600)" in refusal(answer, 400)


def test_two_different_ones_are_400(stack: Stack) -> None:
    client = stack.http()
    answer = client.post(
        "/v2/mochi-1", json={**POND, SCENARIO: "fail"}, headers={SCENARIO: "crash"}
    )
    assert "two different" in refusal(answer, 400)


def test_it_belongs_to_what_an_idempotency_key_stands_for(stack: Stack) -> None:
    client = stack.http()
    first = submit(client, "fail", **{"Idempotency-Key": "one"})
    again = submit(client, "fail", **{"Idempotency-Key": "one"})
    assert again.json()["request_id"] == first.json()["request_id"]
    assert submit(client, "blocked", **{"Idempotency-Key": "one"}).status_code == 409
    without = client.post("/v2/mochi-1", json=POND, headers={"Idempotency-Key": "one"})
    assert without.status_code == 409


def test_with_real_weights_it_is_ignored_and_named(stack: Stack) -> None:
    # One such worker is enough: it might be the one that runs it.
    real = str(replace(live("real"), engine=replace(live().engine, is_mock=False)))
    stack.redis.zadd("mochi:workers", {real: (time.time() + 60) * 1000})
    try:
        client = stack.http()
        for scenario in ("fail", "no such"):
            submitted = submit(client, scenario)
            assert submitted.headers["x-ignored-parameters"] == SCENARIO
            assert "scenario" not in stack.record(submitted.json()["request_id"])
            assert end_of(client, submitted)["status"] == "COMPLETED"
    finally:
        stack.redis.zrem("mochi:workers", real)
