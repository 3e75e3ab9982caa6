"""A server that is scaled to zero workers: blocking calls wait for one, `/readyz` needs none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually

POND = {"prompt": "a pond", "frames": 1, "steps": 10}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway whose calls wait for a worker, and its broker."""
    with Stack(tmp_path, engine="fake", wait_for_worker="true") as stack:
        stack.start_gateway()
        yield stack


def unfinished(stack: Stack) -> float:
    """What an autoscaler reads."""
    text = stack.http(stack.key(scopes=(Scope.ADMIN,))).get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    [sample] = families["mochi_unfinished_requests"].samples
    return sample.value


def test_a_blocking_call_waits_for_the_worker_that_it_makes_necessary(stack: Stack) -> None:
    client = stack.http()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "no worker")
    assert "No live worker" in ready.json()["missing"][0]
    assert unfinished(stack) == 0
    with ThreadPoolExecutor() as pool:
        call = pool.submit(client.post, "/v1/mochi-1", json=POND)
        eventually(lambda: unfinished(stack) == 1)
        stack.start_worker()
        answer = call.result()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert unfinished(stack) == 0
    assert client.get("/readyz").json()["status"] == "ready"


def test_a_running_request_counts_as_unfinished(stack: Stack) -> None:
    """A worker that is busy with the last request is not scaled away for an empty queue."""
    stack.start_worker()
    client = stack.http()
    status_url = client.post("/v2/mochi-1", json=POND | {"steps": 75}).json()["status_url"]
    eventually(lambda: client.get(status_url).json()["status"] == "PROCESSING")
    assert unfinished(stack) == 1


def test_a_gateway_without_its_broker_is_not_ready_all_the_same(stack: Stack) -> None:
    stack.broker.stop()
    ready = stack.http("mochi_any").get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
