"""`/version`: the engines of the workers that are alive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.version import this_build
from tests.support.stack import Stack, eventually


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.1") as stack:
        stack.start_gateway()
        yield stack


FAKE = {
    "model": "light mock",
    "device": "CPU",
    "precision": "none",
    "profile": "",
    "lossy": [],
    "is_mock": True,
    "gpus": 1,
}
"""What /version says of a worker with the fake engine."""


def engines(stack: Stack) -> list[dict[str, Any]]:
    answer = stack.http().get("/version")
    assert answer.status_code == 200
    engines: list[dict[str, Any]] = answer.json()["engines"]
    return engines


def test_version_names_the_engines_of_workers_while_they_are_alive(stack: Stack) -> None:
    assert engines(stack) == []
    told, killed = (stack.start_worker(lease_seconds="2") for _ in range(2))
    assert engines(stack) == [FAKE, FAKE]
    stack.redis.delete("mochi:workers")
    assert eventually(lambda: engines(stack) == [FAKE, FAKE])
    told.terminate()
    assert told.wait(30) == 0
    assert engines(stack) == [FAKE]
    killed.kill()
    eventually(lambda: engines(stack) == [], seconds=10)


def test_version_tells_builds_apart(stack: Stack) -> None:
    told = stack.http().get("/version").json()
    assert told["commit"]
    assert (told["version"], told["commit"]) == this_build()
    assert told["dirty"] is told["version"].endswith(".dirty")


def test_version_answers_without_the_broker(stack: Stack) -> None:
    worker = stack.start_worker()
    client = stack.http()
    whole = client.get("/version").json()
    assert whole["link_origins"] == []
    stack.broker.stop()
    assert client.get("/version").json() == whole | {"engines": []}
    stack.broker.start()
    assert eventually(lambda: client.get("/version").json()["engines"]) == whole["engines"]
    assert worker.poll() is None
