"""A worker in this process, for each test anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from tests.unit.worker.support.desk import Desk


@pytest.fixture
def desk(redis: Redis, redis_url: str, tmp_path: Path) -> Desk:
    return Desk(redis, redis_url, tmp_path / "outputs")
