"""The broker, as the workers of these tests see it."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.unit.worker.support.cached import RETENTION_SECONDS
from worker.store.worker_side import WorkerStore


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS)
