"""The result cache over HTTP: with two keys, two workers and the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from tests.support.wire import ended, submit
from worker.store import keyspace

POND: dict[str, Any] = {"prompt": "a pond", "frames": 4, "steps": 20, "seed": 7, "poster": True}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("cache"),
        engine="fake",
        fake_step_seconds="0.03",
        cache="true",
        cache_price="0.25",
        price_base="0.2",
        checkpoint_steps="5",
    ) as stack:
        stack.start_gateway()
        for _ in range(2):
            stack.start_worker()
        yield stack


@pytest.fixture
def other(stack: Stack) -> httpx2.Client:
    """Of another key."""
    return stack.http()


def result(client: httpx2.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    body = ended(client, submitted["request_id"])
    assert body["status"] == "COMPLETED", body
    return body


def made(client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    return result(client, submit(client, body))


def video(body: dict[str, Any]) -> bytes:
    return httpx2.get(body["output"]).content


def test_equal_requests_are_one_run_and_each_is_its_keys_own(
    client: httpx2.Client, other: httpx2.Client
) -> None:
    asked = POND | {"seed": 1}
    bodies = [(client, submit(client, asked)), (other, submit(other, asked))]
    results = [result(*each) for each in bodies]
    late = made(other, asked)
    cached = [body["metrics"].get("cached") for body in (*results, late)]
    assert cached.count(True) == 2
    assert late["metrics"]["cached"] is True
    assert late["metrics"]["inference_time"] == 0
    assert late["metrics"]["cost"] == 0.05
    (maker,) = (body for body in results if "cached" not in body["metrics"])
    assert maker["metrics"]["cost"] == 0.2
    assert len({video(body) for body in (*results, late)}) == 1
    assert len({httpx2.get(body["poster"]["url"]).content for body in (*results, late)}) == 1
    ids = {body["request_id"] for body in (*results, late)}
    assert len(ids) == 3
    for body in (*results, late):
        others = ids - {body["request_id"]}
        head = httpx2.head(body["output"])
        assert not any(name in f"{body} {head.headers}" for name in others)
    assert client.get(late["output"].replace("videos", "requests")).status_code == 404
    assert client.get(f"/v2/requests/{late['request_id']}").status_code == 404


def test_the_bytes_are_those_of_an_undisturbed_run(client: httpx2.Client) -> None:
    first = made(client, POND)
    cached = made(client, POND)
    for body in (first, cached):
        bytes_ = video(body)
        assert client.delete(f"/v1/videos/{body['request_id']}").status_code == 200
    again = made(client, POND)
    assert "cached" not in again["metrics"]
    assert video(again) == bytes_


def test_a_blocking_call_gets_the_video_at_once(stack: Stack, client: httpx2.Client) -> None:
    first = made(client, POND | {"seed": 2})
    answer = client.post("/v1/mochi-1", json=POND | {"seed": 2})
    assert answer.content == video(first)
    assert answer.headers["x-cached"] == "true"
    assert answer.headers["x-request-id"] != first["request_id"]
    assert first["request_id"] not in str(answer.headers)


def test_blocking_calls_at_once_share_a_run(stack: Stack) -> None:
    def call(_number: int) -> bytes:
        answer = stack.http().post("/v1/mochi-1", json=POND | {"seed": 3})
        assert answer.status_code == 200, answer.text
        return answer.content

    before = runs(stack)
    with ThreadPoolExecutor(4) as pool:
        assert len({*pool.map(call, range(4))}) == 1
    assert runs(stack) == before + 1


def runs(stack: Stack) -> float:
    """Runs that began for want of a video."""
    lines = stack.http(stack.key(scopes=[Scope.ADMIN])).get("/metrics").text.splitlines()
    name = 'mochi_cache_requests_total{outcome="miss"}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_cancelled_run_leaves_its_twin(client: httpx2.Client, other: httpx2.Client) -> None:
    asked = POND | {"seed": 4, "steps": 60}
    first = submit(client, asked)
    eventually(lambda: client.get(first["status_url"]).json()["status"] == "PROCESSING")
    twin = submit(other, asked)
    assert client.put(f"{first['response_url']}/cancel").status_code == 202
    body = result(other, twin)
    assert "cached" not in body["metrics"]


def test_a_draft_always_runs_and_its_finish_may_be_cached(client: httpx2.Client) -> None:
    asked = POND | {"seed": 5}
    drafts = [made(client, asked | {"draft_steps": 5}) for _ in range(2)]
    assert [draft["metrics"].get("cached") for draft in drafts] == [None, None]
    urls = [draft["draft"]["finish_url"] for draft in drafts]
    finished = [result(client, client.post(url).json()) for url in urls]
    whole = made(client, asked)
    assert [each["metrics"].get("cached") for each in (*finished, whole)] == [None, True, True]
    assert len({video(each) for each in (*finished, whole)}) == 1


def test_a_mock_scenario_always_runs(client: httpx2.Client) -> None:
    made(client, POND | {"seed": 6})
    again = result(client, submit(client, POND | {"seed": 6}, **{"x-mock-scenario": "slow:0.01"}))
    assert "cached" not in again["metrics"]


def test_a_dry_run_tells_that_it_would_be_cached(client: httpx2.Client) -> None:
    asked = POND | {"seed": 8}
    fresh = client.post("/v2/mochi-1?dry_run=true", json=asked).json()
    assert "cached" not in fresh
    made(client, asked)
    cached = client.post("/v2/mochi-1?dry_run=true", json=asked).json()
    assert (cached["cached"], cached["would_be_accepted"]) == (1, True)
    assert cached["price"] == {"fixed": 0.05, "gpu_second": 0, "most": 0.05}
    assert cached["estimated_seconds"] == 0
    assert "queue_position" not in cached
    several = client.post("/v2/mochi-1?dry_run=true", json=asked | {"count": 3}).json()
    assert several["cached"] == 1
    assert several["price"] == {"fixed": 0.45, "gpu_second": 0, "most": 0.45}


def test_the_sdk_gets_a_cached_video(stack: Stack) -> None:
    sdk = stack.sdk()
    first, second = (sdk.run("mochi-1", **POND | {"seed": 9}) for _ in range(2))
    assert second["metrics"]["cached"] is True
    assert video(first) == video(second)


def test_usage_counts_cached_requests(stack: Stack) -> None:
    client = stack.http()
    for _ in range(2):
        made(client, POND | {"seed": 10})
    (row,) = client.get("/v1/usage").json()["usage"]
    assert (row["requests"], row["completed"], row["cached"]) == (2, 2, 1)


def test_the_history_tells_it_after_the_record_has_expired(
    stack: Stack, client: httpx2.Client
) -> None:
    bodies = [made(client, POND | {"seed": 13}) for _ in range(2)]
    for body in bodies:
        stack.redis.delete(keyspace.record(body["request_id"]))
    rows = client.get("/inference-request/request-history").json()["generations"]
    told = {row["request_id"]: row.get("cached") for row in rows}
    assert told == {bodies[0]["request_id"]: None, bodies[1]["request_id"]: True}


def test_another_fps_needs_no_gpu_and_has_the_bytes_of_a_run(
    stack: Stack, client: httpx2.Client
) -> None:
    asked = POND | {"seed": 11}
    first, before = made(client, asked), runs(stack)
    other = made(client, asked | {"fps": 24})
    assert other["metrics"]["cached"] is True
    assert other["metrics"]["cost"] == 0.05
    assert runs(stack) == before
    bytes_ = {name: httpx2.get(other[name]["url"]).content for name in ("video", "poster")}
    for body in (first, other):
        client.delete(f"/v1/videos/{body['request_id']}")
    again = made(client, asked | {"fps": 24})
    assert runs(stack) == before + 1
    assert {name: httpx2.get(again[name]["url"]).content for name in bytes_} == bytes_


def test_a_kept_file_that_is_lost_is_made_again(stack: Stack, client: httpx2.Client) -> None:
    asked = POND | {"seed": 12}
    first = made(client, asked)
    for name in stack.outputs():
        if name.startswith(first["request_id"]):
            (stack.folder / "outputs" / name).unlink()
    other = made(client, asked | {"fps": 24})
    assert "cached" not in other["metrics"]
    assert len(video(other)) > 1000


def test_a_video_whose_file_is_lost_is_given_once_and_then_made(
    stack: Stack, client: httpx2.Client
) -> None:
    asked = POND | {"seed": 14}
    first = made(client, asked)
    for name in stack.outputs():
        if name.startswith(first["request_id"]):
            (stack.folder / "outputs" / name).unlink()
    other = made(client, asked)
    assert other["metrics"]["cached"] is True
    assert httpx2.get(other["output"]).status_code == 404
    again = made(client, asked)
    assert "cached" not in again["metrics"]
    assert len(video(again)) > 1000
