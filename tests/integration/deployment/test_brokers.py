"""Brokers that operators bring along: behind TLS, with users, with Sentinels, set up badly."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from redis import Redis
from redis.exceptions import NoPermissionError

from server.cli.administer.workers import drain_workers
from server.keys import store as keys
from server.keys.audit import entries
from server.keys.file import apply_key_file, export_key_file
from server.keys.record import NewKey
from tests.support.jobs import ask_gateway, end_lease, live, pop
from tests.support.jobs import submit as accept
from tests.support.services.brokers import SAFE, ExternalStack, Valkey, proxy, sentinel, valkey
from tests.support.stack import Stack, eventually
from worker.broker.connection import connect_briefly, connect_gateway, connect_worker
from worker.broker.health import dangers_in
from worker.errors import BrokerUnavailableError
from worker.store import keyspace
from worker.store.fleet import cancel_all, fleet
from worker.store.worker_side import Lease, Order, Recovery, Result, WorkerStore

DEPLOY = Path(__file__).parents[3] / "docs" / "deploy.md"
PASSWORD = "hunter2"
REFUSAL_SECONDS = 2.5
"""Within about two seconds, the gateway says that the broker is away."""


def submit(client: httpx2.Client, steps: int = 10) -> str:
    answer = client.post("/v2/mochi-1", json={"prompt": "a pond", "steps": steps, "frames": 1})
    assert answer.is_success, answer.text
    return str(answer.json()["request_id"])


def completed(client: httpx2.Client, request_id: str) -> bool:
    """Whether the request has ended, and well."""
    body: dict[str, str] = client.get(f"/v2/requests/{request_id}").json()
    assert body.get("status") != "FAILED", body
    return body.get("status") == "COMPLETED"


def events(stack: Stack, name: str) -> list[dict[str, Any]]:
    """What all processes have logged under `name`."""
    lines = [json.loads(line) for line in stack.logs().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def create_key(stack: Stack, url: str) -> subprocess.CompletedProcess[str]:
    """What an operator types on another machine."""
    return stack.run("keys", "create", "laptop", MOCHI_REDIS_URL=url)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Valkey]:
    """A server as it is after installation: nothing is on disk before a minute."""
    with valkey(tmp_path / "valkey") as server:
        yield server


class Certificates:
    """A CA, another one, and what a server and its clients need of the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ca, other = trustme.CA(), trustme.CA()
        ca.cert_pem.write_to_path(folder / "ca.pem")
        other.cert_pem.write_to_path(folder / "other.pem")
        client = ca.issue_cert("client.example").private_key_and_cert_chain_pem
        client.write_to_path(folder / "client.pem")
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.verify_mode = ssl.CERT_REQUIRED
        ca.configure_trust(self.context)
        ca.issue_cert("127.0.0.1").configure_cert(self.context)

    def options(self, ca: str = "ca.pem") -> str:
        """What a URL says of them."""
        client = self._folder / "client.pem"
        return f"ssl_ca_certs={self._folder / ca}&ssl_certfile={client}&ssl_keyfile={client}"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def test_a_broker_behind_tls_is_reached_with_its_own_ca_and_a_client_certificate(
    certificates: Certificates, tmp_path: Path
) -> None:
    with (
        valkey(tmp_path / "valkey", *SAFE, "--requirepass", PASSWORD, password=PASSWORD) as broker,
        proxy(lambda: broker.port, certificates.context) as port,
    ):
        url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?"
        with ExternalStack(tmp_path, url + certificates.options(), fake_step_seconds="0") as stack:
            stack.start_gateway()
            stack.start_worker()
            client = stack.http()
            request_id = submit(client)
            eventually(lambda: completed(client, request_id))
            assert events(stack, "broker.silent") == []

            wrong = url + certificates.options("other.pem")
            for package in ("worker", "server"):
                stack.start(package, environ={"MOCHI_REDIS_URL": wrong, "MOCHI_PORT": "0"})
            refused = create_key(stack, wrong)
            assert refused.returncode == 1
            assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
            eventually(lambda: len(events(stack, "broker.silent")) == 2)
            for event in events(stack, "broker.silent"):
                assert event["address"] == f"rediss://127.0.0.1:{port}/0"
                assert "CERTIFICATE_VERIFY_FAILED" in event["reason"]
            assert PASSWORD not in stack.logs() + refused.stderr


def test_sentinels_and_their_master_may_be_behind_tls(
    certificates: Certificates, plain: Valkey, tmp_path: Path
) -> None:
    with (
        proxy(lambda: plain.port, certificates.context) as master_port,
        sentinel(tmp_path / "sentinel", master_port) as guard,
        proxy(lambda: guard.port, certificates.context) as port,
    ):
        url = f"sentinels://127.0.0.1:{port}/mochi?"
        request_id = accept(url + certificates.options())
        with connect_briefly(url + certificates.options()) as redis:
            assert redis.exists(keyspace.record(request_id))
        for secure, why in (
            (url + certificates.options("other.pem"), "CERTIFICATE_VERIFY_FAILED"),
            (url.replace("/mochi", "/mocha") + certificates.options(), "knows no master mocha"),
        ):
            with pytest.raises(BrokerUnavailableError) as error:
                accept(secure)
            assert why in error.value.reason
            assert f"Sentinel 127.0.0.1:{port}" in error.value.reason


@pytest.fixture
def user_of_the_document(plain: Valkey) -> str:
    """The URL of the user that docs/deploy.md creates."""
    (command,) = re.findall(r"valkey-cli (ACL SETUSER .+)", DEPLOY.read_text())
    plain.tell(*shlex.split(command))
    return f"redis://mochi:PASSWORD@127.0.0.1:{plain.port}/1"


def test_the_user_of_the_document_may_do_what_a_server_needs(
    user_of_the_document: str, plain: Valkey, tmp_path: Path
) -> None:
    with ExternalStack(tmp_path, user_of_the_document, fake_step_seconds="0") as stack:
        stack.start_gateway()
        worker = stack.start_worker()
        made = create_key(stack, user_of_the_document)
        assert "PASSWORD" not in made.stderr
        client = stack.http(made.stdout.strip())
        request_id = submit(client)
        eventually(lambda: completed(client, request_id))
        assert client.post("/v1/mochi-1", json={"prompt": "a", "steps": 10}).is_success
        worker.terminate()
        assert worker.wait(30) == 0
        assert events(stack, "broker.silent") == events(stack, "broker.refused") == []
        assert {entry["object"] for entry in plain.redis.acl_log()} == {"config|get"}


def test_the_user_of_the_document_may_administer_keys(
    user_of_the_document: str, tmp_path: Path
) -> None:
    with connect_briefly(user_of_the_document) as redis:
        keys.create_key(redis, NewKey(name="ann"))
        keys.change_key(redis, "ann", lambda key: key.with_balance(Decimal(5)))
        keys.rotate_key(redis, "ann")
        (tmp_path / "keys.toml").write_text(export_key_file(redis))
        apply_key_file(redis, tmp_path / "keys.toml")
        revoked = keys.revoke_key(redis, "ann")
        assert cancel_all(redis, revoked.key_id, retention_seconds=60) == 0
        assert [key.name for key, _ in keys.all_keys(redis)] == ["ann"]
        acts = [entry.act for entry in entries(redis, 9)]
        assert acts == ["create", "set", "rotate", "apply", "revoke"]


def test_the_user_of_the_document_may_repair_what_dead_workers_leave(
    user_of_the_document: str,
) -> None:
    with connect_briefly(user_of_the_document) as redis:
        store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
        leases = [Lease(accept(user_of_the_document), f"run-{index}") for index in range(3)]
        for lease in leases:
            assert pop(redis) == lease.request_id
        assert store.recover(leases[0].request_id) is Recovery.REQUEUED
        assert pop(redis)
        for lease in leases:
            assert store.start(lease, "ann")
            assert not store.beat(live(), lease, 3)
        end_lease(redis, leases[0].request_id)
        overdue = store.overdue()
        assert overdue is not None
        assert overdue.expired == [leases[0].request_id]
        assert store.reap(leases[0].request_id) is Recovery.REQUEUED
        assert store.requeue(leases[1])
        assert store.complete(leases[2], Result("a.mp4", 1))
        assert store.exists(leases[2].request_id)
        assert store.unlisted() == []
        assert [worker.name for worker in fleet(redis)] == ["ann"]
        drain_workers(redis, ["ann"], wait=False)
        assert store.beat(live()) == {Order.DRAIN}
        store.sign_off(live())


def test_the_user_of_the_document_may_touch_nothing_else(user_of_the_document: str) -> None:
    with connect_briefly(user_of_the_document) as redis:
        for command in (
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "requirepass"),
            ("GET", "others"),
            ("SET", "others", "x"),
            ("EVAL", "return 1", "0"),
            ("SCRIPT", "FLUSH"),
            ("ACL", "LIST"),
            ("SUBSCRIBE", "news"),
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*command)


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        ({}, ["set `appendonly yes` and `appendfsync always`"]),
        ({"appendonly": "yes"}, ["set `appendfsync always`; it is `everysec`"]),
        ({"appendonly": "yes", "appendfsync": "always"}, []),
        (
            {"appendfsync": "no", "maxmemory-policy": "allkeys-lru"},
            ["set `appendonly yes`", "set `maxmemory-policy noeviction`; it is `allkeys-lru`"],
        ),
    ],
)
def test_what_a_broker_may_lose_is_found_with_the_remedy(
    plain: Valkey, settings: dict[str, str], remedies: list[str]
) -> None:
    for name, value in settings.items():
        plain.redis.config_set(name, value)
    url = f"redis://127.0.0.1:{plain.port}"
    with connect_briefly(url) as redis:
        found = WorkerStore(redis, lease_seconds=10, retention_seconds=60).dangers()
    assert ask_gateway(url, lambda it: it.dangers()) == found
    assert len(found) == len(remedies)
    assert all(remedy in danger for danger, remedy in zip(found, remedies, strict=True))


@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_a_version_that_is_not_supported_is_found(version: str) -> None:
    (danger,) = dangers_in([{"redis_version": f"{version}.14", "aof_enabled": 1}, {}])
    assert danger == f"Its version is {version}, and must be 7.2 or later."


def test_what_a_broker_does_not_tell_is_taken_for_right(plain: Valkey) -> None:
    def dangers(*rule: str) -> list[str]:
        plain.tell("ACL", "SETUSER", "shy", "on", "nopass", "~*", "+@all", *rule)
        with Redis(port=plain.port, username="shy", password="any") as redis:
            return WorkerStore(redis, lease_seconds=10, retention_seconds=60).dangers()

    assert len(dangers("-config")) == 1
    plain.redis.config_set("appendonly", "yes")
    assert dangers("-config") == []
    plain.redis.config_set("maxmemory-policy", "allkeys-lru")
    assert dangers("-info") == []


def test_a_broker_that_refuses_to_write_is_waited_for(plain: Valkey, tmp_path: Path) -> None:
    """As a demoted master does behind an address that moves, and one that misses its replicas."""
    url = f"redis://127.0.0.1:{plain.port}/0"
    with ExternalStack(tmp_path, url, fake_step_seconds="0.05") as stack:
        stack.start_gateway()
        worker = stack.start_worker()
        client = stack.http()

        plain.redis.config_set("min-replicas-to-write", 1)
        eventually(lambda: events(stack, "broker.refused"))
        answer = client.post("/v2/mochi-1", json={"prompt": "a pond"})
        assert answer.status_code == 502
        time.sleep(1.2)
        plain.redis.config_set("min-replicas-to-write", 0)
        request_id = submit(client, steps=40)
        eventually(lambda: int(stack.record(request_id).get("step", 0)) >= 5)
        plain.tell("REPLICAOF", "127.0.0.1", "1")
        eventually(lambda: "read only replica" in str(events(stack, "broker.refused")))
        time.sleep(1)
        plain.tell("REPLICAOF", "NO", "ONE")
        eventually(lambda: completed(client, request_id))
        assert stack.record(request_id)["attempt"] == "1"
        assert worker.poll() is None
        for process in stack.processes:
            (warning,) = [
                line for line in stack.log_of(process).splitlines() if "may_lose_jobs" in line
            ]
            assert "appendonly yes" in warning
        eventually(lambda: "broker.back" in stack.log_of(worker))


def test_an_address_that_moves_is_followed_although_the_old_master_answers(
    plain: Valkey, tmp_path: Path
) -> None:
    masters = [plain]

    async def set_before_and_after(url: str) -> None:
        async with connect_gateway(url) as gateway:
            with connect_worker(url) as worker, connect_briefly(url) as brief:
                assert worker.set("worker", "x")
                assert brief.set("brief", "x")
                assert await gateway.set("gateway", "x")
                plain.tell("REPLICAOF", "127.0.0.1", "1")
                masters.append(other)
                assert worker.set("worker", "y")
                assert brief.set("brief", "y")
                assert await gateway.set("gateway", "y")

    with valkey(tmp_path / "other") as other, proxy(lambda: masters[-1].port) as port:
        asyncio.run(set_before_and_after(f"redis://127.0.0.1:{port}"))
        assert other.redis.mget("worker", "brief", "gateway") == ["y", "y", "y"]


def test_a_job_outlives_the_master_when_sentinels_name_another(tmp_path: Path) -> None:
    access = ("--requirepass", PASSWORD, "--primaryauth", PASSWORD)
    own = (*SAFE, *access, "--repl-diskless-sync-delay", "0")
    lines = (f"sentinel auth-pass mochi {PASSWORD}", "requirepass sesame")
    with (
        valkey(tmp_path / "master", *own, password=PASSWORD) as master,
        valkey(
            tmp_path / "replica",
            *own,
            *("--replicaof", f"127.0.0.1 {master.port}"),
            password=PASSWORD,
        ) as replica,
        socket.create_server(("127.0.0.1", 0)) as silent,  # a Sentinel that never answers
    ):
        eventually(lambda: "online" in str(master.redis.info("replication").get("slave0")))
        with sentinel(tmp_path / "sentinel", master.port, *lines, password="sesame") as guard:
            eventually(lambda: guard.redis.sentinel_slaves("mochi"))
            hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{guard.port}"
            url = f"sentinel://:{PASSWORD}@{hosts}/mochi/0?sentinel_password=sesame"
            assert accept(url)  # soon enough, although the first of them is asked in vain
            with ExternalStack(tmp_path, url, fake_step_seconds="0.1") as stack:
                stack.start_gateway()
                worker = stack.start_worker()
                client = stack.http()
                request_id = submit(client, steps=50)
                record = keyspace.record(request_id)
                eventually(lambda: int(str(replica.redis.hget(record, "step") or 0)) >= 5)
                master.kill()
                next_one = first_accepted(client)
                eventually(lambda: completed(client, request_id))
                eventually(lambda: completed(client, next_one))
                assert replica.redis.hget(record, "attempt") == "1"
                assert worker.poll() is None
                assert {event["address"] for event in events(stack, "broker.silent")} == {
                    f"sentinel://{hosts}/mochi/0"
                }
                assert PASSWORD not in stack.logs()
                assert "sesame" not in stack.logs()


def first_accepted(client: httpx2.Client) -> str:
    """The id of the first request that is accepted; those before are refused, and soon."""
    started = time.monotonic()
    while True:
        asked = time.monotonic()
        answer = client.post("/v2/mochi-1", json={"prompt": "a pond", "steps": 10, "frames": 1})
        assert time.monotonic() - asked < REFUSAL_SECONDS
        if answer.is_success:
            break
        assert answer.status_code == 502, answer.text
    seconds = time.monotonic() - started
    print(f"accepts requests {seconds:.1f} s after the kill")  # noqa: T201 (the figure of this test)
    return str(answer.json()["request_id"])
