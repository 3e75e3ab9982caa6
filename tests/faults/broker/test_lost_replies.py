"""F12 to F14: the broker has done what it was asked, and the reply is lost on its way."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from tests.faults.support.client import Client
from tests.faults.support.proxy import LossyProxy
from tests.support.stack import APART_SECONDS, Stack, eventually
from worker.broker.embedded import EmbeddedBroker
from worker.store import keyspace

Times = Callable[[int, int], int]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyProxy]:
    with LossyProxy(EmbeddedBroker(tmp_path_factory.getbasetemp() / "lost-replies").url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, proxy: LossyProxy) -> Iterator[Stack]:
    """A gateway and a worker whose every word to the broker goes through the proxy."""
    settings = {"redis_url": proxy.url, "lease_seconds": "2", "fake_step_seconds": "0.05"}
    with Stack(tmp_path_factory.getbasetemp() / "lost-replies", engine="fake", **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def client(stack: Stack) -> Client:
    return Client(stack)


def requests_of(stack: Stack) -> set[str]:
    return {str(key).rpartition(":")[2] for key in stack.redis.keys(keyspace.record("*"))}


def submit(client: Client, **headers: str) -> httpx2.Response:
    body = {"prompt": "a pond", "steps": 10, "frames": 1}
    return client.http.post("/v2/mochi-1", json=body, headers=headers)


def test_f12_a_submit_whose_reply_is_lost_makes_one_request(
    stack: Stack, client: Client, proxy: LossyProxy, times: Times
) -> None:
    for _ in range(times(2, 30)):
        before, lost = requests_of(stack), proxy.lost["submit"]
        proxy.lose("submit")
        request_id = client.submit()
        assert proxy.lost["submit"] == lost + 1
        assert requests_of(stack) - before == {request_id}
        client.assert_made_once(request_id)


def test_f12_a_client_that_hears_nothing_may_submit_again_with_its_key(
    stack: Stack, client: Client, proxy: LossyProxy, times: Times
) -> None:
    """The gateway tries twice. When both replies are lost, only the client can try again."""
    for number in range(times(1, 20)):
        before, lost = requests_of(stack), proxy.lost["submit"]
        proxy.lose("submit", 2)
        headers = {"Idempotency-Key": f"once-{number}"}
        assert submit(client, **headers).status_code == 502
        assert proxy.lost["submit"] == lost + 2
        again = submit(client, **headers)
        assert again.headers["Idempotency-Replayed"] == "true"
        request_id = again.json()["request_id"]
        assert requests_of(stack) - before == {request_id}
        client.assert_made_once(request_id)


def test_f13_what_was_popped_when_the_reply_was_lost_is_run_all_the_same(
    client: Client, proxy: LossyProxy
) -> None:
    """A worker that waits pops with BLMOVE, one that comes back from a run with our script."""
    before = dict(proxy.lost)
    proxy.lose("BLMOVE")
    lost_waiting = client.submit()
    eventually(lambda: proxy.lost["BLMOVE"] == before.get("BLMOVE", 0) + 1)
    runs = client.submit(steps=20)
    client.running(runs)
    proxy.lose("pop")
    lost_popping = client.submit()
    client.assert_made_once(runs)
    eventually(lambda: proxy.lost["pop"] == before.get("pop", 0) + 1)
    for request_id in (lost_waiting, lost_popping):
        body = client.ended(request_id)
        # A lost pop looks like a worker that died of the request, so it counts as an attempt.
        assert (body["status"], body["metrics"]["retry_count"]) == ("COMPLETED", 1)
        assert [request_id in name for name in client.stack.outputs()].count(True) == 1


def test_f14_a_run_whose_replies_are_lost_has_one_result(
    client: Client, proxy: LossyProxy, times: Times
) -> None:
    commands = ("start", "beat", "finish")
    for lost in range(1, times(2, 10) + 1):
        before = dict(proxy.lost)
        for command in commands:
            proxy.lose(command, lost)
        client.assert_made_once(client.submit(steps=20))
        for command in commands:
            eventually(lambda: proxy.lost[command] == before.get(command, 0) + lost)


def test_f14_a_failure_whose_reply_is_lost_is_told_once(client: Client, proxy: LossyProxy) -> None:
    before = proxy.lost["finish"]
    proxy.lose("finish")
    failed = client.submit("fail:no")
    body = client.ended(failed)
    eventually(lambda: proxy.lost["finish"] == before + 1)
    assert (body["status"], body["error"]) == ("FAILED", "no")
    client.assert_made_once(client.submit())
    assert client.result(failed) == body


def test_f14_a_cancellation_whose_reply_is_lost_ends_the_request_once(
    client: Client, proxy: LossyProxy
) -> None:
    running, waiting = client.submit(steps=40), client.submit()
    client.running(running)
    for request_id, status in ((waiting, 200), (running, 202)):
        before = proxy.lost["cancel"]
        proxy.lose("cancel")
        # For what waited, the gateway's second try comes after the end.
        assert client.http.delete(f"/v2/requests/{request_id}").status_code == status
        assert proxy.lost["cancel"] == before + 1
        body = client.ended(request_id)
        assert (body["status"], body["error_code"]) == ("FAILED", "cancelled")
        assert not [name for name in client.stack.outputs() if request_id in name]
    client.assert_made_once(client.submit())


def one_of_two(client: Client) -> tuple[subprocess.Popen[bytes], str, str]:
    """A new worker, the request that it runs, and the one that the other worker runs."""
    worker = client.stack.start_worker()
    ids = [client.submit(steps=60) for _ in range(2)]
    names = [client.running(request_id) for request_id in ids]
    mine = 0 if f"-{worker.pid}-" in names[0] else 1
    return worker, ids[mine], ids[1 - mine]


def test_f14_a_run_that_is_requeued_when_the_reply_is_lost_is_queued_once(
    client: Client, proxy: LossyProxy
) -> None:
    worker, requeued, other = one_of_two(client)
    proxy.lose("requeue")
    worker.terminate()
    time.sleep(APART_SECONDS)
    worker.terminate()
    assert worker.wait(20) == 0
    assert proxy.lost["requeue"] == 1
    assert client.stack.redis.lrange(keyspace.RQ_QUEUE, 0, -1) == [requeued]
    client.assert_made_once(other)
    client.assert_made_once(requeued, runs=2)


def test_f14_a_dead_workers_run_is_queued_once_when_the_reply_is_lost(
    client: Client, proxy: LossyProxy
) -> None:
    worker, died, other = one_of_two(client)
    proxy.lose("reap")
    worker.kill()
    client.assert_made_once(other)
    body = client.ended(died)
    assert proxy.lost["reap"] == 1
    assert (body["status"], body["metrics"]["retry_count"]) == ("COMPLETED", 1)
    assert client.stack.record(died)["attempt"] == "2"
    assert [died in name for name in client.stack.outputs()].count(True) == 1
