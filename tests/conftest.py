"""Fixtures that all tests share. Each test process has its own broker and its own stacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.stack import Stack
from worker.broker import EmbeddedBroker
from worker.connection import connect_briefly

if TYPE_CHECKING:
    from tests.s3 import ObjectStore


@pytest.fixture(scope="session")
def _broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def redis(_broker: EmbeddedBroker) -> Iterator[Redis]:
    """A client of a real, empty Valkey."""
    client = connect_briefly(_broker.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def redis_url(redis: Redis, _broker: EmbeddedBroker) -> str:
    """Its URL."""
    return _broker.url


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway and a worker with the fake engine, for tests that leave them as they are."""
    with Stack(tmp_path_factory.mktemp("server"), engine="fake", fake_step_seconds="0.01") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="session")
def mock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same with diffusers' Mochi on mock weights."""
    with Stack(tmp_path_factory.mktemp("mock"), mock="true") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="session")
def shared_object_store() -> Iterator[ObjectStore]:
    """An S3 for as long as the tests run. Those that make it misbehave heal it."""
    from tests.s3 import ObjectStore  # noqa: PLC0415 (a second that few tests need)

    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def object_store(
    shared_object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """An S3 that behaves, with the variables of this process leading to it."""
    for name, value in shared_object_store.environ().items():
        monkeypatch.setenv(name, value)
    yield shared_object_store
    shared_object_store.heal()
