"""Acts of administrators while the broker's memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from redis import Redis

from server.cli.administer.workers import drain_workers
from server.keys.audit import entries
from server.keys.record import NewKey
from server.keys.signing import rotate_signing_secret, signing_secret
from server.keys.store import all_keys, change_key, create_key, one_key, revoke_key, rotate_key
from tests.support.jobs import ask_gateway, live
from worker.store.gateway_side import GatewayStore
from worker.store.webhooks.deliveries import signing_secrets
from worker.store.worker_side import WorkerStore

ANN = NewKey(name="ann")


@pytest.fixture
def full(redis: Redis) -> Iterator[Redis]:
    """A broker that had room for a key and a worker."""
    create_key(redis, ANN)
    WorkerStore(redis, lease_seconds=10, retention_seconds=60).beat(live())
    redis.config_resetstat()
    redis.config_set("maxmemory", "1")
    yield redis
    redis.config_set("maxmemory", "0")


def test_a_full_memory_refuses_no_act_of_an_administrator(full: Redis) -> None:
    """A key that has leaked cannot wait until there is room."""
    change_key(full, "ann", lambda key: key.with_balance(Decimal(5)))
    rotate_key(full, "ann")
    old = signing_secret(full, "ann")
    rotate_signing_secret(full, "ann", timedelta(hours=1))
    assert signing_secrets(full, one_key(full, "ann")[0].key_id)[1] == old
    drain_workers(full, [], wait=False)
    revoke_key(full, "ann")
    assert [key.revoked_at is None for key, _ in all_keys(full)] == [False]
    done = [entry.act for entry in entries(full, 9)]
    assert done == ["create", "set", "rotate", "rotate webhook secret", "drain", "revoke"]
    # Redis 7.0 refuses it with a full memory, whatever is in it.
    assert "cmdstat_multi" not in full.info("commandstats")


def test_a_gateway_signs_links_although_the_memory_is_full(full: Redis, redis_url: str) -> None:
    assert len(ask_gateway(redis_url, GatewayStore.link_secret)) == 64
