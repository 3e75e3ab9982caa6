"""Fixtures that all tests share. Each test process has its own broker and its own stacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.stack import Stack
from worker.broker import EmbeddedBroker
from worker.connection import connect_briefly


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
