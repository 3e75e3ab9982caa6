"""Releases that cannot share a broker: the older one says so, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.chaos.releases import next_release, within
from tests.support.stack import Stack, eventually
from tests.support.wire import refusal
from worker.broker.schema import SCHEMA_KEY

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
BOTH = (
    "have schema 2, and this release, mochi-server",
    "reads schema 1.",
    "docs/operate/upgrading.md",
)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    data = tmp_path / "data"
    data.mkdir()
    with Stack(data, engine="fake", fake_step_seconds="0.01", lease_seconds="2") as stack:
        stack.start_gateway()
        yield stack


@pytest.fixture
def newer(tmp_path: Path) -> tuple[str, str]:
    """A release that writes schema 2, and reads 1 as well."""
    (tmp_path / "newer").mkdir()
    return within(next_release(tmp_path / "newer", 2, {1, 2}))


def submit(client: httpx2.Client) -> str:
    answer = client.post("/v2/mochi-1", json=POND)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def completed(client: httpx2.Client, request_id: str) -> bool:
    return bool(client.get(f"/v2/requests/{request_id}").json()["status"] == "COMPLETED")


def says_both(text: str) -> bool:
    return all(part in text for part in BOTH)


def test_a_newer_release_shuts_the_older_out_until_it_is_replaced(
    stack: Stack, newer: tuple[str, str]
) -> None:
    old_url, old_worker = stack.url, stack.start_worker()
    old = stack.http()
    waiting = submit(old)
    eventually(lambda: completed(old, waiting))
    stack.start_worker(within=newer)
    assert stack.redis.get(SCHEMA_KEY) == "2"

    assert says_both(refusal(old.post("/v2/mochi-1", json=POND), 502))
    ready = httpx2.get(f"{old_url}/readyz")
    assert ready.status_code == 503
    assert says_both(ready.json()["missing"][0])
    eventually(lambda: says_both(stack.log_of(old_worker)))
    assert old_worker.poll() is None  # no loop of crashes, and it works again after a rollback
    for package in ("server", "worker"):
        refused = stack.start(package, environ={"MOCHI_PORT": "0"})
        assert refused.wait(60) == os.EX_CONFIG
        assert says_both(stack.log_of(refused))
    listed = stack.run("keys", "list")
    assert listed.returncode == 1
    assert says_both(" ".join(listed.stderr.split()))

    stack.start_gateway(within=newer)
    new = httpx2.Client(base_url=stack.url, headers=old.headers)
    with new:
        assert completed(new, waiting)  # what the older release left is read
        request_id = submit(new)
        eventually(lambda: completed(new, request_id))
    assert stack.redis.get(SCHEMA_KEY) == "2"


def test_processes_that_were_shut_out_go_on_when_the_broker_is_theirs_again(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client)
    worker = stack.start_worker()
    eventually(lambda: completed(client, request_id))
    stack.redis.set(SCHEMA_KEY, 2)
    refusal(client.post("/v2/mochi-1", json=POND), 502)
    eventually(lambda: says_both(stack.log_of(worker)))
    stack.redis.set(SCHEMA_KEY, 1)
    later = submit(client)
    eventually(lambda: completed(client, later))
