"""A server of two models: each has its routes, ranges, price, queue and workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from tests.support.wire import ended

FAST = "mochi-1-fast"
POND = {"prompt": "a pond", "frames": 1}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, and a worker of both models."""
    settings = {
        "models": f"mochi-1,{FAST}",
        "price_frame_step": "0.01",
        "price_factors": f"{FAST}=0.5",
    }
    folder = tmp_path_factory.mktemp("models")
    with Stack(folder, engine="fake", fake_step_seconds="0.001", **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def client(stack: Stack) -> httpx2.Client:
    return stack.http()


def test_a_model_is_asked_for_by_its_path(client: httpx2.Client) -> None:
    submitted = client.post(f"/v2/{FAST}", json=POND)
    assert submitted.status_code == 200, submitted.text
    request_id = submitted.json()["request_id"]
    assert ended(client, request_id)["status"] == "COMPLETED"
    assert client.get(f"/v2/requests/{request_id}/status").json()["total_steps"] == 8
    video = client.get(ended(client, request_id)["output"]).content
    assert b'"model": "mochi-1-fast"' in video


def test_a_model_in_the_body_is_ignored_with_the_path_to_take(client: httpx2.Client) -> None:
    def warnings(model: Any) -> list[str]:
        submitted = client.post("/v2/mochi-1", json={**POND, "model": model})
        assert submitted.headers["x-ignored-parameters"] == "model"
        found: list[str] = ended(client, submitted.json()["request_id"])["warnings"]
        return [each for each in found if "`model`" in each]

    ignored = "`model` is unknown and was ignored"
    assert warnings(FAST) == [f"{ignored}; the path names the model: POST /v2/{FAST}"]
    assert warnings("mochi-1") == warnings("sora") == warnings([FAST]) == [ignored]


def test_the_model_in_the_path_is_no_ignored_parameter(client: httpx2.Client) -> None:
    submitted = client.post(f"/v2/{FAST}", json=POND)
    assert "x-ignored-parameters" not in submitted.headers
    assert not ended(client, submitted.json()["request_id"]).get("warnings")


def test_a_model_in_a_body_is_ignored_where_the_path_names_one(client: httpx2.Client) -> None:
    for path in ("mochi-1", FAST):
        submitted = client.post(f"/v2/{path}", json={**POND, "model": "mochi-1"})
        assert submitted.headers["x-ignored-parameters"] == "model"


def test_a_blocking_call_answers_with_the_video_of_its_model(client: httpx2.Client) -> None:
    slow = client.post("/v1/mochi-1", json=POND)
    fast = client.post(f"/v1/{FAST}", json=POND)
    assert [answer.status_code for answer in (slow, fast)] == [200, 200]
    assert slow.content != fast.content
    assert FAST.encode() not in slow.content


def test_each_model_has_its_price(client: httpx2.Client) -> None:
    slow, fast = (client.post(f"/v1/{model}", json=POND) for model in ("mochi-1", FAST))
    assert float(slow.headers["x-cost"]) == pytest.approx(30 * 0.01)
    assert float(fast.headers["x-cost"]) == pytest.approx(8 * 0.01 * 0.5)
    trial = client.post(f"/v2/{FAST}?dry_run=true", json=POND).json()
    assert trial["price"]["most"] == pytest.approx(0.04)


@pytest.mark.parametrize("path", [f"/v1/{FAST}", f"/v2/{FAST}"])
def test_a_value_out_of_the_ranges_of_the_model_is_refused(
    client: httpx2.Client, path: str
) -> None:
    refused = client.post(path, json={**POND, "steps": 30})
    assert refused.status_code == 400
    assert refused.json()["error"] == "`steps` must be a whole number from 4 to 16; got 30."


def test_a_video_object_takes_and_tells_the_model(client: httpx2.Client) -> None:
    made = client.post("/v1/videos", json={"prompt": "a pond", "model": FAST, "num_frames": 2})
    assert made.status_code == 200, made.text
    assert made.json()["model"] == FAST
    other = client.post("/v1/videos", json=POND).json()
    assert other["model"] == "mochi-1"
    listed = {video["id"]: video["model"] for video in client.get("/v1/videos").json()["data"]}
    assert listed == {made.json()["id"]: FAST, other["id"]: "mochi-1"}
    assert client.get(f"/v1/videos/{made.json()['id']}").json()["model"] == FAST


def test_a_length_in_seconds_comes_with_the_ranges_of_the_model(client: httpx2.Client) -> None:
    asked = {"prompt": "a pond", "model": FAST, "steps": 8, "guidance": 1.5, "seconds": 1}
    assert client.post("/v1/videos", json=asked).json()["seconds"] == "1"
    refused = client.post("/v1/videos", json=asked | {"steps": 30})
    assert "`steps` must be a whole number from 4 to 16; got 30." in refused.text


def test_an_unknown_model_of_a_video_object_is_not_found(client: httpx2.Client) -> None:
    refused = client.post("/v1/videos", json={**POND, "model": "mochi-2"})
    assert refused.status_code == 404
    message = refused.json()["error"]["message"]
    assert message.endswith("The models are `mochi-1` and `mochi-1-fast`.")


def test_all_models_are_listed(client: httpx2.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["owned_by"]) for model in listed] == [
        ("mochi-1", "genmo"),
        (FAST, "FastVideo"),
    ]
    assert client.get(f"/v1/models/{FAST}").json() == listed[1]
    [hosted] = client.get("/inference-model-information/list").json().values()
    assert [model["slug"] for model in hosted] == ["mochi-1", FAST]
    assert [model["parameters"]["steps"]["maximum"] for model in hosted] == [75, 16]
    assert client.get("/version").json()["models"] == ["mochi-1", FAST]


def test_the_history_names_the_model(client: httpx2.Client) -> None:
    ids = {}
    for model in ("mochi-1", FAST):
        ids[client.post(f"/v1/{model}", json=POND).headers["x-request-id"]] = model

    def rows(part: str) -> dict[str, str]:
        answer = client.get("/inference-request/request-history", params={"model_name": part})
        return {row["request_id"]: row["model_name"] for row in answer.json()["generations"]}

    fast = {name: model for name, model in ids.items() if model == FAST}
    assert rows("") == rows("mochi") == ids
    assert rows("fast") == fast
    latest = client.get(
        "/inference-request/recent-generations", params={"model_name": "fast"}
    ).json()
    assert {row["request_id"]: row["model_name"] for row in latest["generations"]} == fast


def test_the_history_names_the_model_when_the_record_has_expired(
    stack: Stack, client: httpx2.Client
) -> None:
    request_id = client.post(f"/v1/{FAST}", json=POND).headers["x-request-id"]
    stack.redis.delete(f"mochi:request:{request_id}")
    row = client.get(f"/inference-request/request-history/{request_id}").json()
    assert row["model_name"] == FAST


@pytest.mark.parametrize(
    ("path", "body"),
    [(f"/v1/{FAST}", POND), (f"/v2/{FAST}", POND), ("/v1/videos", {**POND, "model": FAST})],
)
def test_a_key_of_another_model_is_refused(stack: Stack, path: str, body: object) -> None:
    key = stack.key(models=("mochi-1",))
    refused = stack.http(key).post(path, json=body)
    assert refused.status_code == 403
    assert "may not use the model `mochi-1-fast`; it may use `mochi-1`" in refused.text
    assert stack.http(key).post("/v2/mochi-1", json=POND).status_code == 200


def test_a_key_lists_the_models_that_it_may_use(stack: Stack) -> None:
    client = stack.http(stack.key(models=(FAST,)))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [FAST]
    [hosted] = client.get("/inference-model-information/list").json().values()
    assert [model["slug"] for model in hosted] == [FAST]
    assert client.get(f"/v1/models/{FAST}").json()["id"] == FAST
    refused = client.get("/v1/models/mochi-1")
    assert refused.status_code == 403
    assert "may not use the model `mochi-1`; it may use `mochi-1-fast`" in refused.text


def test_an_idempotency_key_is_of_one_model(client: httpx2.Client) -> None:
    headers = {"idempotency-key": "one"}
    first = client.post("/v2/mochi-1", json=POND, headers=headers)
    again = client.post("/v2/mochi-1", json=POND, headers=headers)
    assert first.json() == again.json()
    assert client.post(f"/v2/{FAST}", json=POND, headers=headers).status_code == 409


def test_the_command_asks_for_a_model(stack: Stack, tmp_path: Path) -> None:
    video = tmp_path / "pond.mp4"
    arguments = ("generate", "A pond", "--frames", "1", "--model", FAST, "-o", str(video))
    made = stack.run(*arguments, MOCHI_URL=stack.url, MOCHI_API_KEY=stack.key())
    assert made.returncode == 0, made.stderr
    assert b'"model": "mochi-1-fast"' in video.read_bytes()
    unknown = ("generate", "A pond", "--model", "no/such", "-o", str(tmp_path / "none.mp4"))
    refused = stack.run(*unknown, MOCHI_URL=stack.url, MOCHI_API_KEY=stack.key())
    assert refused.returncode == 1
    assert "There is no such path or model here" in refused.stderr


def test_the_tool_takes_a_model(stack: Stack) -> None:
    async def use() -> list[Any]:
        headers = {"x-api-key": stack.key()}
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            transport = streamable_http_client(f"{stack.url}/mcp", http_client=http)
            async with Client(transport) as client:
                [tool] = (await client.list_tools()).tools
                fast, other = {**POND, "model": FAST, "steps": 4}, {**POND, "model": None}
                calls = [await client.call_tool("generate_video", each) for each in (fast, other)]
                return [tool.input_schema, *calls]

    schema, made, default = asyncio.run(use())
    assert schema["properties"]["model"]["enum"] == ["mochi-1", FAST]
    steps = schema["properties"]["steps"]
    assert (steps["minimum"], steps["maximum"]) == (4, 75)
    assert not made.is_error, made
    assert stack.record(made.structured_content["request_id"])["model"] == FAST
    assert not default.is_error, default
    assert "model" not in stack.record(default.structured_content["request_id"])


def test_metrics_are_of_each_model(stack: Stack) -> None:
    text = stack.http(stack.key(scopes=[Scope.ADMIN])).get("/metrics").text
    for model in ("mochi-1", FAST):
        assert f'mochi_model_live_workers{{model="{model}"}} 1.0' in text
        assert f'mochi_model_waiting_requests{{model="{model}"}} ' in text


def test_operators_see_what_a_worker_runs(stack: Stack) -> None:
    listed = json.loads(stack.run("workers", "list", "--json").stdout)
    assert [worker["models"] for worker in listed] == [["mochi-1", FAST]]
    shown = json.loads(stack.run("top", "--once", "--json").stdout)
    assert [worker["models"] for worker in shown["workers"]] == [["mochi-1", FAST]]


@pytest.fixture
def of_one(tmp_path: Path) -> Iterator[Stack]:
    """A gateway of the default model, without a worker."""
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.001") as stack:
        stack.start_gateway()
        yield stack


@pytest.mark.parametrize("path", [f"/v1/{FAST}", f"/v2/{FAST}", f"/v1/models/{FAST}"])
def test_a_model_that_no_worker_has_run_is_not_there(of_one: Stack, path: str) -> None:
    client = of_one.http()
    refused = client.get(path) if "models" in path else client.post(path, json=POND)
    assert refused.status_code == 404
    assert refused.json()["error"] == (
        "This server does not have the model `mochi-1-fast`; it has `mochi-1`. Its operator can "
        "start a worker with MOCHI_MODELS=mochi-1-fast."
    )
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mochi-1"]


def test_a_model_is_there_once_a_worker_runs_it_and_stays_while_it_restarts(
    of_one: Stack,
) -> None:
    client = of_one.http()
    worker = of_one.start_worker(models=FAST)
    eventually(lambda: client.get(f"/v1/models/{FAST}").is_success)
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["missing"] == ["No live worker takes requests for `mochi-1`."]
    assert client.post(f"/v1/{FAST}", json=POND).status_code == 200

    lacking = client.post("/v1/mochi-1", json=POND)
    assert lacking.status_code == 502
    waiting = client.post("/v2/mochi-1", json=POND).json()["request_id"]
    assert client.get(f"/v2/requests/{waiting}/status").json()["queue_position"] == 1

    worker.terminate()
    assert worker.wait(30) == 0
    assert client.post(f"/v1/{FAST}", json=POND).status_code == 502
    later = client.post(f"/v2/{FAST}", json=POND).json()["request_id"]
    of_one.start_worker(models=f"mochi-1,{FAST}")
    for request_id in (waiting, later):
        assert ended(client, request_id)["status"] == "COMPLETED"
    assert client.get("/readyz").json()["missing"] == []
