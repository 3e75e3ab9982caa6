"""`/readyz` lists what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from redis import Redis

from server.app import create_app
from server.settings import ServerSettings
from tests.support.stack import eventually
from tests.support.wire import call
from worker.broker.connection import connect_gateway
from worker.runtime.background import loading
from worker.store import keyspace
from worker.store.worker_side import WorkerStore


def test_a_full_disk_is_named_before_the_broker_that_has_died_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "outputs").mkdir()
    url = f"unix://{tmp_path}/gone.sock"
    settings = ServerSettings(data_dir=tmp_path, redis_url=url, min_free_mib=1 << 40)
    app = create_app(settings, connect_gateway(url))
    [ready] = call(app, httpx2.Request("GET", "http://test/readyz"))
    assert ready.status_code == 503
    disk, broker = ready.json()["missing"]
    assert "MiB free, and MOCHI_MIN_FREE_MIB asks for 1099511627776: make room" in disk
    assert str(tmp_path) not in ready.text
    assert "The broker does not answer" in broker
    assert ready.json()["workers"] == "unknown"


def test_a_broker_that_refuses_a_call_is_not_called_silent(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    redis.set(keyspace.WORKERS, "no sorted set")
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url), connect_gateway(redis_url)
    )
    [ready] = call(app, httpx2.Request("GET", "http://test/readyz"))
    assert ready.status_code == 503
    assert ready.json()["missing"] == [
        "The job broker refuses this call; the server's log has its reason."
    ]


def test_a_worker_that_loads_the_model_is_told_from_none(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url), connect_gateway(redis_url)
    )

    def ready() -> Any:
        [answer] = call(app, httpx2.Request("GET", "http://test/readyz"))
        return answer.json()

    def state() -> str:
        return str(ready()["workers"])

    assert state() == "none"
    assert ready()["missing"] == [
        "No live worker. `mochi-server up` restarts its own; if this lasts, its output says why. "
        "Elsewhere, start one with `mochi-server worker`."
    ]
    with loading(WorkerStore(redis, lease_seconds=10, retention_seconds=60)):
        eventually(lambda: redis.exists(keyspace.LOADING))
        assert state() == "loading"
        assert 0 < redis.ttl(keyspace.LOADING) <= keyspace.LOADING_SECONDS
    assert state() == "none"
