from __future__ import annotations

import pytest
from redis import Redis

from tests.unit.server.keys.backups import Broker, filled


@pytest.fixture
def broker(redis: Redis, redis_url: str) -> Broker:
    return filled(redis, redis_url)
