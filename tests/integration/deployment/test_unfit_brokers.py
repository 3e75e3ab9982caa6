"""Brokers that answer and cannot be used: each is named with what is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from tests.support.services.brokers import SAFE, ExternalStack, valkey
from tests.support.stack import eventually
from tests.support.wire import refusal
from worker.broker.connection import broker_errors
from worker.errors import BrokerUnfitError

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
CLUSTER = ("--cluster-enabled", "yes")
REPLICA = ("--replicaof", "127.0.0.1 9")
PASSWORD = ("--requirepass", "hunter2")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (CLUSTER, "must name a server with `cluster-enabled no`"),
        (REPLICA, "must name the primary, or Sentinels: sentinel://host:26379/NAME"),
        (PASSWORD, "It refuses the user or password in MOCHI_REDIS_URL"),
    ],
    ids=["cluster", "replica", "password"],
)
def test_a_broker_that_cannot_be_used_is_named_with_the_remedy(
    tmp_path: Path, arguments: tuple[str, ...], remedy: str
) -> None:
    password = "hunter2" if arguments == PASSWORD else ""
    with valkey(tmp_path / "broker", *SAFE, *arguments, password=password) as server:
        url = f"redis://127.0.0.1:{server.port}"
        with ExternalStack(tmp_path, url) as stack:
            created = stack.run("keys", "create", "ann")
            assert created.returncode == 1
            assert remedy in " ".join(created.stderr.split())
            stack.start_gateway()
            ready = stack.http("mochi_none").get("/readyz")
            assert ready.status_code == 503
            assert remedy in ready.json()["missing"][0]
            eventually(lambda: remedy in stack.logs())


def test_a_broker_that_takes_no_writes_is_named_with_the_remedy(tmp_path: Path) -> None:
    with valkey(tmp_path / "broker", *SAFE, "--save", "3600 1") as server:
        url = f"redis://127.0.0.1:{server.port}"
        with ExternalStack(tmp_path, url) as stack:
            stack.start_gateway()
            client = stack.http()
            server.tell("CONFIG", "SET", "min-replicas-to-write", "1")
            refused = refusal(client.post("/v2/mochi-1", json=POND), 502)
            assert "too few replicas are connected" in refused
            server.tell("CONFIG", "SET", "min-replicas-to-write", "0")
            (server.folder / "dump.rdb").mkdir()  # its snapshot fails, as on a full disk
            server.tell("BGSAVE")
            eventually(lambda: server.redis.info("persistence")["rdb_last_bgsave_status"] == "err")
            refused = refusal(client.post("/v2/mochi-1", json=POND), 502)
            assert "It takes no writes, as it cannot write to its disk. Make room" in refused
            assert "cannot write to its disk" in client.get("/readyz").json()["missing"][0]
            worker = stack.start("worker")
            eventually(lambda: "cannot write to its disk" in stack.log_of(worker))


def test_a_broker_without_memory_is_named_with_the_remedy(tmp_path: Path) -> None:
    with valkey(tmp_path / "broker", *SAFE) as server:
        url = f"redis://127.0.0.1:{server.port}"
        with ExternalStack(tmp_path, url) as stack:
            stack.start_gateway()
            client = stack.http()
            server.tell("CONFIG", "SET", "maxmemory", "1")
            remedy = "Its memory is full: raise its `maxmemory`"
            assert remedy in refusal(client.post("/v2/mochi-1", json=POND), 502)
            assert remedy in client.get("/readyz").json()["missing"][0]
            eventually(lambda: remedy in stack.logs())
            assert stack.run("keys", "create", "bob").returncode == 0
            server.tell("CONFIG", "SET", "maxmemory", "0")
            assert client.post("/v2/mochi-1", json=POND).is_success


def test_a_server_that_knows_no_flags_of_scripts_is_called_too_old() -> None:
    said = "Error compiling script (new function): user_script:1: unexpected symbol near '#'"
    with pytest.raises(BrokerUnfitError, match=r"use Redis 7\.2 or Valkey"), broker_errors():
        raise ResponseError(said)
