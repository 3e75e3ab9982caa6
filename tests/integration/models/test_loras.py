"""Workers that offer different LoRAs: a request runs where all that it names are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import ended

POND = {"prompt": "a pond", "frames": 1, "steps": 10}


def start(folder: Path) -> Stack:
    return Stack(folder, engine="fake", fake_step_seconds="0.001")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway; a worker without LoRAs, one with two, and one with two others."""
    with start(tmp_path_factory.mktemp("loras")) as stack:
        stack.start_gateway()
        stack.start_worker()
        stack.start_worker(loras="noir,anime")
        stack.start_worker(loras="anime,ink=/no/such/file.safetensors")
        yield stack


@pytest.fixture
def client(stack: Stack) -> httpx2.Client:
    return stack.http()


def submit(client: httpx2.Client, lora: Any = None) -> str:
    submitted = client.post("/v2/mochi-1", json={**POND, "lora": lora})
    assert submitted.status_code == 200, submitted.text
    return str(submitted.json()["request_id"])


@pytest.mark.parametrize(
    ("lora", "where"),
    [
        ("noir", {"anime", "noir"}),
        ({"ink": 0.5}, {"anime", "ink"}),
        ({"noir": 1, "anime": -0.5}, {"anime", "noir"}),
    ],
    ids=["a name", "a scale", "two"],
)
def test_a_request_runs_at_a_worker_with_all_that_it_names(
    stack: Stack, client: httpx2.Client, lora: Any, where: set[str]
) -> None:
    names = {
        worker["name"]: set(worker["engine"].get("loras", {}))
        for worker in map(json.loads, stack.redis.zrange("mochi:workers", 0, -1))  # type: ignore[arg-type]
    }
    request_ids = [submit(client, lora) for _ in range(6)]
    assert {ended(client, each)["status"] for each in request_ids} == {"COMPLETED"}
    assert all(names[stack.record(each)["worker"]] == where for each in request_ids)


def test_the_video_is_told_what_was_asked_for(client: httpx2.Client) -> None:
    plain = client.post("/v1/mochi-1", json=POND)
    styled = client.post("/v1/mochi-1", json={**POND, "lora": {"noir": 0.5}})
    assert (plain.status_code, styled.status_code) == (200, 200)
    assert b'"lora": {"noir": 0.5}' in styled.content
    assert b'"lora"' not in plain.content


def test_forms_and_video_objects_have_the_parameter_too(
    stack: Stack, client: httpx2.Client
) -> None:
    form = {"prompt": "a pond", "frames": "1"}
    for lora in ("noir", '{"noir": 0.25}'):
        made = client.post("/v2/mochi-1", data={**form, "lora": lora})
        assert made.status_code == 200, made.text
        assert "x-ignored-parameters" not in made.headers
        asked = json.loads(stack.record(made.json()["request_id"])["params"])["lora"]
        assert asked == {"noir": 1.0 if lora == "noir" else 0.25}
    video = client.post("/v1/videos", json={"prompt": "a pond", "lora": "ink"}).json()
    assert json.loads(stack.record(video["id"])["params"])["lora"] == {"ink": 1.0}


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ("sepia", "no live worker has `sepia`. There are: `anime`, `ink`, `noir`."),
        (
            {"ink": 1, "noir": 1},
            "no live worker has all of `ink`, `noir`. One has `anime`, `noir` or `anime`, `ink`.",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v2/mochi-1", "/v2/mochi-1?dry_run=true"])
def test_a_name_that_no_worker_has_is_refused_with_those_that_there_are(
    client: httpx2.Client, path: str, lora: Any, why: str
) -> None:
    refused = client.post(path, json={**POND, "lora": lora})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("`lora`: no live worker has ")
    if isinstance(lora, str):
        assert refused.json()["error"] == f"`lora`: {why}"
    assert refused.json()["parameters"].keys() == {"lora"}


def test_the_version_lists_the_names(client: httpx2.Client) -> None:
    assert client.get("/version").json()["loras"] == ["anime", "ink", "noir"]


def test_a_dry_run_says_that_it_would_run(client: httpx2.Client) -> None:
    trial = client.post("/v2/mochi-1?dry_run=true", json={**POND, "lora": "noir"}).json()
    assert trial["would_be_accepted"]
    assert trial["queue_position"] >= 1


def test_a_retry_gets_its_request_though_the_lora_has_gone(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        stack.start_gateway()
        worker = stack.start_worker(loras="noir")
        client = stack.http()
        headers = {"Idempotency-Key": "once"}
        body = {**POND, "lora": "noir"}
        first = client.post("/v2/mochi-1", json=body, headers=headers).json()["request_id"]
        assert ended(client, first)["status"] == "COMPLETED"
        worker.terminate()
        assert worker.wait(30) == 0
        again = client.post("/v2/mochi-1", json=body, headers=headers)
        assert again.json()["request_id"] == first
        refused = client.post("/v2/mochi-1", json=body)
        assert refused.json()["error"] == (
            "`lora`: no live worker has a LoRA. Leave it out, or ask your operator for a worker "
            "with MOCHI_LORAS."
        )


def test_a_request_waits_for_a_worker_with_its_lora(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.3") as stack:
        stack.start_gateway()
        stack.start_worker()
        styled = stack.start_worker(loras="noir")
        client = stack.http()
        assert "loras" in client.get("/version").json()
        request_id = submit(client, "noir")
        eventually(lambda: stack.record(request_id)["status"] == "PROCESSING")
        client.get("/readyz")
        styled.kill()
        # The reconciler of the other worker requeues it, and that worker runs what it can.
        eventually(lambda: stack.record(request_id)["status"] == "QUEUED")
        assert ended(client, submit(client))["status"] == "COMPLETED"
        assert client.get(f"/v2/requests/{request_id}/status").json()["queue_position"] == 1
        missing = eventually(lambda: client.get("/readyz").json()["missing"])
        assert missing == ["No live worker has the LoRA `noir` any more."]
        assert client.get("/readyz").status_code == 200
        stack.start_worker(loras="noir")
        assert ended(client, request_id)["status"] == "COMPLETED"


def test_workers_with_other_numbers_under_a_name_are_warned(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        first = stack.start_worker(loras="noir")
        live = str(next(iter(stack.redis.zrange("mochi:workers", 0, -1))))
        other = live.replace('"name":"', '"name":"other-').replace('light mock"}', 'else"}')
        assert other != live
        stack.redis.zadd("mochi:workers", {other: 2e12})
        second = stack.start_worker(loras="noir")
        assert "lora.differs" not in stack.log_of(first)
        assert '"event": "lora.differs"' in stack.log_of(second)
