"""F29: after the hour, here a few seconds, nothing of a request is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults.support.client import Client, events
from tests.support.jobs import make_webhook_due
from tests.support.services.receiver import ALLOWED, receiver
from tests.support.stack import Stack, eventually
from worker.broker.schema import SCHEMA_KEY
from worker.store import keyspace

SECONDS = 5.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0.05", "lease_seconds": "2"}
    settings |= {"webhook_allow": ALLOWED, "history_days": "0"}
    with Stack(tmp_path, retention_seconds=str(SECONDS), **settings) as stack:
        stack.start_gateway()
        yield stack


def keys(stack: Stack) -> set[str]:
    """All that requests leave: no sums of a day, speeds, times of a reconciler, claims or marks."""
    found = map(str, stack.redis.keys("*"))
    kept = (
        keyspace.USAGE,
        keyspace.PACES,
        keyspace.LOOKS,
        keyspace.SWEEP,
        keyspace.STORE,
        SCHEMA_KEY,
    )
    return {key for key in found if not key.startswith(kept)}


def answers(client: Client, request_id: str) -> set[int]:
    paths = [
        f"/v2/requests/{request_id}/status",
        f"/v2/requests/{request_id}",
        f"/v1/requests/{request_id}",
    ]
    return {client.http.get(path).status_code for path in paths}


def test_f29_after_the_hour_no_key_and_no_file_is_left_of_any_request(stack: Stack) -> None:
    """However it ended, and with it its idempotency key, and the turns of those who asked."""
    first, second = Client(stack), Client(stack)
    before = keys(stack)
    assert before == {
        keyspace.SECRETS,
        keyspace.KEY_NAMES,
        keyspace.AUDIT,
        *(keyspace.API_KEY + client.owner for client in (first, second)),
    }
    died = first.submit(steps=20)
    killed = stack.start_worker()
    first.running(died)
    killed.kill()
    done, failed = first.submit(key="done"), second.submit("fail:no", key="failed")
    cancelled_waiting, cancelled_running = second.submit(key="waiting"), second.submit(steps=75)
    assert second.http.delete(f"/v2/requests/{cancelled_waiting}").status_code == 202
    worker = stack.start_worker()
    link = first.ended(done)["output"]
    path = urlsplit(link)._replace(scheme="", netloc="").geturl()
    assert first.http.get(path).status_code == 200
    second.running(cancelled_running)
    assert second.http.delete(f"/v2/requests/{cancelled_running}").status_code == 202
    blocking = first.http.post("/v1/mochi-1", json={"prompt": "now", "steps": 10, "frames": 1})
    assert blocking.headers["content-type"] == "video/mp4"
    draft = first.submit(draft_steps=5)
    finish = first.http.post(first.ended(draft)["draft"]["finish_url"]).json()["request_id"]
    assert f"{draft}.checkpoint" in stack.outputs()
    mine = {died, done, blocking.headers["x-request-id"], draft, finish}
    others = {failed, cancelled_waiting, cancelled_running}
    for client, ids in ((first, mine), (second, others)):
        for request_id in ids:
            eventually(lambda: answers(client, request_id) == {404}, seconds=2 * SECONDS)
    made = {entry["request_id"] for entry in events(stack, worker, "run.completed")}
    assert made == mine
    assert first.http.get(path).status_code == 404
    eventually(lambda: not stack.outputs(), seconds=3 * SECONDS)
    worker.terminate()
    assert worker.wait(20) == 0
    assert keys(stack) == before | {
        keyspace.LINK_SECRET,
        keyspace.RQ_QUEUES,
        keyspace.METRICS,
    }
    again = first.submit(key="done")
    assert again != done


def test_f29_after_the_hour_no_delivery_is_left_that_has_ended(stack: Stack) -> None:
    """Two hours, in fact: that of the record, and that of the delivery, which may come later."""
    client = Client(stack)
    before = keys(stack)
    with receiver() as there:
        there.status = 500
        body = {"prompt": "told", "frames": 1, "steps": 10, "webhook_url": there.url}
        request_id = client.http.post("/v2/mochi-1", json=body).json()["request_id"]
        assert client.http.delete(f"/v2/requests/{request_id}").status_code == 202
        eventually(lambda: there.calls)
        eventually(lambda: answers(client, request_id) == {404}, seconds=2 * SECONDS)
        delivery = keyspace.WEBHOOK + request_id
        owed = {keyspace.WEBHOOKS, f"{keyspace.WEBHOOKS}:{client.owner}"}
        assert {delivery, *owed} <= keys(stack)  # still due, or on its way
        there.status = 200
        make_webhook_due(stack.redis, request_id)
        secret = keyspace.webhook_secret(client.owner)
        left = before | {secret, keyspace.RQ_QUEUES, keyspace.METRICS}
        eventually(lambda: keys(stack) == left, seconds=3 * SECONDS)


def test_a_gateway_removes_videos_while_no_worker_is_alive(stack: Stack) -> None:
    client, worker = Client(stack), stack.start_worker()
    client.ended(client.submit())
    worker.kill()
    assert stack.outputs()
    eventually(lambda: not stack.outputs(), seconds=6 * SECONDS)


def test_f29_what_waits_does_not_expire(stack: Stack) -> None:
    client = Client(stack)
    waits = client.submit(key="kept")
    with pytest.raises(AssertionError, match="not within"):
        eventually(lambda: answers(client, waits) != {200}, seconds=1.5 * SECONDS)
    assert client.submit(key="kept") == waits
    stack.start_worker()
    client.assert_made_once(waits)
