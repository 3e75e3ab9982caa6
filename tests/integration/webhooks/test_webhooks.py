"""`webhook_url`: a signed POST reports the end of a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis as AsyncRedis
from standardwebhooks import WebhookVerificationError
from typer.testing import CliRunner, Result

from models.mock.scenario import SCENARIO
from server.cli import main as cli
from server.keys.audit import entries
from server.keys.store import one_key, revoke_key
from server.webhooks.url import MOST_LENGTH
from tests.support.jobs import make_webhook_due
from tests.support.services.receiver import ALLOWED, Call, Receiver, receiver, trap
from tests.support.stack import Stack, eventually
from tests.support.wire import refusal
from worker.broker.connection import connect_gateway
from worker.store import keyspace
from worker.store.deliveries import (
    JITTER,
    MOST_ATTEMPTS,
    PAUSES,
    Deliveries,
    Delivery,
    State,
    all_deliveries,
    signing_secrets,
)

POND: dict[str, Any] = {"prompt": "a pond at night", "frames": 1, "steps": 10}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0.01", "webhook_allow": ALLOWED}
    with Stack(tmp_path_factory.mktemp("webhooks"), **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as it:
        yield it


class Customer:
    """A client with a key and a receiver."""

    def __init__(self, stack: Stack, there: Receiver) -> None:
        self.stack = stack
        self.there = there
        self.key = stack.key()
        self.owner = stack.owner(self.key)
        self.http = stack.http(self.key)

    @property
    def secret(self) -> str:
        return signing_secrets(self.stack.redis, self.owner)[0]

    def submit(self, prompt: str = "a pond", **more: Any) -> str:
        body = POND | {"prompt": prompt, "webhook_url": self.there.url} | more
        answer = self.http.post("/v2/mochi-1", json=body)
        assert answer.is_success, answer.text
        assert "x-ignored-parameters" not in answer.headers
        return str(answer.json()["request_id"])

    def told(self, request_id: str, times: int = 1) -> Call:
        """The last of so many calls."""
        eventually(lambda: len(self.there.of(request_id)) >= times)
        calls = self.there.of(request_id)
        assert len(calls) == times
        return calls[-1]

    def delivery(self, request_id: str) -> Delivery:
        return eventually(lambda: self._found(request_id))[0]

    def _found(self, request_id: str) -> list[Delivery]:
        found = all_deliveries(self.stack.redis)
        return [delivery for delivery in found if delivery.request_id == request_id]

    def noted(self, request_id: str, times: int = 1) -> Delivery:
        """The delivery, once so many attempts have been noted."""
        eventually(lambda: len(self.delivery(request_id).log) >= times)
        return self.delivery(request_id)

    def make_due(self, request_id: str) -> None:
        """As if the time for the next attempt had come, or the sender's lease had ended."""
        make_webhook_due(self.stack.redis, request_id)


@pytest.fixture
def customer(stack: Stack, there: Receiver) -> Customer:
    return Customer(stack, there)


def test_a_completed_request_is_told_of_with_its_result_and_a_signature(
    customer: Customer,
) -> None:
    request_id = customer.submit()
    call = customer.told(request_id)
    body = call.verified(customer.secret)
    assert body["type"] == "request.completed"
    assert body["data"] == customer.http.get(f"/v2/requests/{request_id}").json()
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    assert call.headers["content-type"] == "application/json"
    assert call.path == "/hook"
    assert customer.http.get(body["data"]["output"]).is_success
    delivery = customer.noted(request_id)
    assert (delivery.state, delivery.attempts) == (State.DELIVERED, 1)
    assert delivery.log[0][1] == "HTTP 200"


def test_a_failed_request_is_told_of_with_its_error(customer: Customer) -> None:
    request_id = customer.submit(**{SCENARIO: "fail:the lens cap was on"})
    body = customer.told(request_id).verified(customer.secret)
    assert body["type"] == "request.failed"
    assert body["data"] == customer.http.get(f"/v2/requests/{request_id}").json()


def test_a_cancelled_request_is_told_of(customer: Customer) -> None:
    request_id = customer.submit(steps=75, frames=160)
    assert customer.http.delete(f"/v2/requests/{request_id}").status_code == 202
    body = customer.told(request_id).verified(customer.secret)
    assert body["data"]["error_code"] == "cancelled"


def test_the_url_may_come_in_the_query_and_on_the_blocking_call(customer: Customer) -> None:
    query = {"webhook_url": f"{customer.there.url}?token=hunter2"}
    answer = customer.http.post("/v1/mochi-1", params=query, json=POND)
    assert answer.headers["content-type"] == "video/mp4"
    assert customer.told(answer.headers["x-request-id"]).path == "/hook?token=hunter2"
    assert "hunter2" not in customer.stack.logs()


def test_the_url_is_a_part_of_what_an_idempotency_key_is_for(customer: Customer) -> None:
    there = {"webhook_url": customer.there.url}
    elsewhere = {"webhook_url": customer.there.url + "/else"}

    def post(name: str, body: dict[str, str], query: dict[str, str]) -> Any:
        return customer.http.post(
            "/v2/mochi-1", json=POND | body, params=query, headers={"idempotency-key": name}
        )

    first = post("one", there, {})
    assert post("one", {}, there).json() == first.json()  # wherever it comes
    assert post("one", there, {}).headers["idempotency-replayed"] == "true"
    for body, query in ((elsewhere, {}), ({}, elsewhere), ({}, {})):
        assert refusal(post("one", body, query), 409)
    customer.told(first.json()["request_id"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (" ", "another scheme"),
        ("hooks.example", "another scheme"),
        ("//hooks.example/x", "another scheme"),
        ("ftp://hooks.example/", "another scheme"),
        ("file:///etc/passwd", "another scheme"),
        ("https:///x", "no host"),
        ("https://", "no host"),
        ("https://a b/", "no host"),
        ("https://%6cocalhost/", "no host"),
        ("https://hooks.example:0/", "no host"),
        ("https://hooks.example:99999/", "no host"),
        ("https://hooks.example\n/", "no URL"),
        ("https://\ud800/", "no URL"),
        ("https://me:secret@hooks.example/", "user or password"),
        ("https://hooks.example\\@inside/", "user or password"),
        ("https://hooks.example/#x", "`#`"),
        ("https://hooks.example/" + "x" * MOST_LENGTH, "2,070 characters"),
        (7, "no string"),
        (["https://hooks.example/"], "no string"),
        ("http://127.0.0.1/", "private, local or special"),
        ("http://2130706433/", "private, local or special"),
        ("http://[::ffff:127.0.0.1]/", "private, local or special"),
        ("http://169.254.169.254/latest/meta-data/", "private, local or special"),
    ],
)
def test_a_bad_url_is_400_with_field_rule_and_remedy(stack: Stack, url: object, why: str) -> None:
    body = json.dumps(POND | {"webhook_url": url})
    headers = {"content-type": "application/json"}
    text = refusal(stack.http().post("/v2/mochi-1", content=body, headers=headers), 400)
    assert text.startswith("`webhook_url` must ")
    assert why in text
    assert "secret" not in text


def test_two_urls_are_refused_and_none_is_taken_for_none(stack: Stack, there: Receiver) -> None:
    client = stack.http()
    body = POND | {"webhook_url": "https://one.example/"}
    answer = client.post("/v2/mochi-1", json=body, params={"webhook_url": "https://two.example/"})
    assert "send one" in refusal(answer, 400)
    one = {"webhook_url": there.url}
    for body, query, kept in (
        ({"webhook_url": None}, {}, None),
        ({"webhook_url": ""}, {}, None),
        ({}, {"webhook_url": ""}, None),
        ({"webhook_url": ""}, one, there.url),
        (one, {"webhook_url": ""}, there.url),
    ):
        answer = client.post("/v2/mochi-1", json=POND | body, params=query)
        assert answer.is_success, answer.text
        request_id = answer.json()["request_id"]
        assert stack.record(request_id).get("webhook_url") == kept


def test_a_redirect_is_not_followed_and_tried_again(customer: Customer) -> None:
    with trap() as (port, seen):
        customer.there.status = 307
        customer.there.location = f"http://{ALLOWED}:{port}/"
        request_id = customer.submit()
        delivery = customer.noted(request_id)
        assert (delivery.state, delivery.log[0][1]) == (State.DUE, "HTTP 307")
        assert seen() == 0


def test_410_is_the_end_of_it(customer: Customer) -> None:
    customer.there.status = 410
    request_id = customer.submit()
    delivery = customer.noted(request_id)
    assert (delivery.state, delivery.due_at) == (State.GIVEN_UP, None)
    assert len(customer.there.of(request_id)) == 1


def test_it_is_tried_again_over_hours_with_the_same_id_and_then_given_up(
    customer: Customer,
) -> None:
    customer.there.status = 503
    request_id = customer.submit()
    for number, pause in enumerate(PAUSES, start=1):
        delivery = customer.noted(request_id, number)
        assert (delivery.state, delivery.attempts) == (State.DUE, number)
        assert delivery.due_at is not None
        waits = (delivery.due_at - delivery.log[-1][0]) / 1000
        assert pause <= waits <= pause * (1 + JITTER)
        customer.make_due(request_id)
    delivery = customer.noted(request_id, MOST_ATTEMPTS)
    assert (delivery.state, delivery.due_at) == (State.GIVEN_UP, None)
    calls = customer.there.of(request_id)
    assert len(calls) == MOST_ATTEMPTS
    assert len({call.body for call in calls}) == 1
    assert calls[-1].verified(customer.secret)


def test_what_has_failed_and_then_succeeds_is_not_sent_again(customer: Customer) -> None:
    customer.there.status = 500
    request_id = customer.submit()
    customer.noted(request_id)
    customer.there.status = 204
    customer.make_due(request_id)
    delivery = customer.noted(request_id, 2)
    assert delivery.state is State.DELIVERED
    assert customer.stack.redis.zscore(keyspace.WEBHOOKS, customer.owner) is None
    assert int(str(customer.stack.redis.pttl(keyspace.WEBHOOK + request_id))) > 0


def test_the_sdk_sends_it_along_and_sees_nothing_else(customer: Customer) -> None:
    sdk = customer.stack.sdk(customer.key)
    job = sdk.submit_async("mochi-1", **POND, webhook_url=customer.there.url)
    result = job.wait(timeout=30, interval=0.05)
    assert customer.told(job.request_id).json["data"] == result


def test_a_sender_that_is_killed_between_send_and_note_leaves_nothing_behind(
    tmp_path: Path, there: Receiver
) -> None:
    """Told twice, at worst, under one id; never not at all."""
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01", webhook_allow=ALLOWED) as stack:
        stack.start_gateway()
        gateway = stack.processes[-1]

        def kill_once(call: Call) -> None:
            if call.headers["webhook-id"] != request_id:
                return  # of another test, whose receiver had this port before
            there.before = lambda _call: None
            gateway.kill()
            gateway.wait()

        there.before = kill_once
        customer = Customer(stack, there)
        request_id = customer.submit()
        stack.start_worker()
        customer.told(request_id)
        eventually(lambda: gateway.poll() is not None)
        assert customer.delivery(request_id).state is State.DUE
        assert customer.delivery(request_id).due_at  # when its lease is over
        stack.start_gateway()
        customer.make_due(request_id)
        customer.told(request_id, 2)
        delivery = customer.noted(request_id)
        assert (delivery.state, delivery.attempts) == (State.DELIVERED, 2)
        first, second = there.of(request_id)
        assert first.body == second.body
        assert first.verified(customer.secret) == second.verified(customer.secret)


def test_an_outcome_that_comes_late_is_not_noted(
    customer: Customer, stack: Stack, redis_of_gateway: Callable[[], AsyncRedis]
) -> None:
    customer.there.status = 500
    request_id = customer.submit()
    taken = customer.noted(request_id)

    async def note(delivery: Delivery) -> bool:
        async with redis_of_gateway() as redis:
            deliveries = Deliveries(redis, retention_seconds=60)
            return await deliveries.note(delivery, State.DELIVERED, "HTTP 200")

    assert not asyncio.run(note(taken))  # it was noted
    assert not asyncio.run(note(replace(taken, attempts=7)))  # another sender has it
    assert customer.delivery(request_id).state is State.DUE


@pytest.fixture
def redis_of_gateway(stack: Stack) -> Callable[[], AsyncRedis]:
    return lambda: connect_gateway(stack.broker.url)


def run(stack: Stack, *words: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli.app, ["webhooks", *words], env=stack.environ)


def test_the_command_lists_deliveries_without_the_secrets_of_urls(customer: Customer) -> None:
    customer.there.status = 410
    request_id = customer.submit(webhook_url=customer.there.url + "/hunter2?token=hunter2")
    customer.noted(request_id)
    listed = run(customer.stack, "list", "--state", "given_up").stdout
    line = next(line for line in listed.splitlines() if request_id in line)
    assert "given_up" in line
    assert "HTTP 410" in line
    host = customer.there.url.removesuffix("/hook")
    assert host in line
    answer = run(customer.stack, "list", "--json").stdout
    shown = next(each for each in json.loads(answer) if each["request_id"] == request_id)
    assert (shown["state"], shown["attempts"], shown["due_at"]) == ("given_up", 1, None)
    assert shown["url"] == host
    for name in ("created_at", "expires_at"):
        assert datetime.fromisoformat(shown[name]).tzinfo is not None
    assert [attempt["outcome"] for attempt in shown["log"]] == ["HTTP 410"]
    assert "hunter2" not in answer + listed
    assert request_id not in run(customer.stack, "list", "--state", "due").stdout


def test_the_command_delivers_once_more_with_the_same_id(customer: Customer) -> None:
    customer.there.status = 410
    request_id = customer.submit()
    customer.noted(request_id)
    customer.there.status = 500
    assert run(customer.stack, "replay", request_id).exit_code == 0
    delivery = customer.noted(request_id, 2)
    assert delivery.due_at is not None
    assert delivery.due_at - delivery.log[-1][0] <= PAUSES[0] * (1 + JITTER) * 1000
    customer.there.status = 200
    assert run(customer.stack, "replay", request_id).exit_code == 0
    delivery = customer.noted(request_id, 3)
    assert (delivery.state, delivery.attempts) == (State.DELIVERED, 3)
    assert len({call.body for call in customer.there.of(request_id)}) == 1


def test_there_is_no_replay_of_what_there_is_not(stack: Stack) -> None:
    answer = run(stack, "replay", "nothing")
    assert answer.exit_code == 1
    assert "`mochi-server webhooks list`" in answer.stderr


def test_a_rotated_secret_signs_beside_the_new_one_for_the_grace(customer: Customer) -> None:
    name = one_key(customer.stack.redis, customer.owner)[0].name
    first = run(customer.stack, "secret", name).stdout.strip()
    assert first == run(customer.stack, "secret", name).stdout.strip() == customer.secret
    second = run(customer.stack, "secret", name, "--rotate", "--grace", "1h").stdout.strip()
    assert first != second == customer.secret
    call = customer.told(customer.submit())
    assert call.verified(first) == call.verified(second)
    assert len(call.headers["webhook-signature"].split()) == 2
    third = run(customer.stack, "secret", name, "--rotate", "--grace", "0").stdout.strip()
    call = customer.told(customer.submit())
    assert call.verified(third)
    for gone in (first, second):
        with pytest.raises(WebhookVerificationError):
            call.verified(gone)
    acts = [entry for entry in entries(customer.stack.redis, 100) if entry.subject == name]
    assert [act.act for act in acts] == ["create", *["rotate webhook secret"] * 2]
    assert not any(secret in str(acts) for secret in (first, second, third))


def test_a_grace_without_a_rotation_is_refused(customer: Customer) -> None:
    name, secret = one_key(customer.stack.redis, customer.owner)[0].name, customer.secret
    answer = run(customer.stack, "secret", name, "--grace", "1h")
    assert answer.exit_code == 2
    assert "--rotate" in answer.stderr
    assert answer.stdout == ""
    assert customer.secret == secret


def test_each_key_has_a_secret_of_its_own(stack: Stack, there: Receiver) -> None:
    one, two = Customer(stack, there), Customer(stack, there)
    call = one.told(one.submit())
    assert call.verified(one.secret)
    with pytest.raises(WebhookVerificationError):
        call.verified(two.secret)


def test_nothing_leaves_for_a_key_that_was_revoked(customer: Customer) -> None:
    customer.there.status = 500
    failing = customer.submit()
    customer.noted(failing)
    running = customer.submit(steps=75, frames=160)
    revoke_key(customer.stack.redis, customer.owner)
    customer.make_due(failing)
    delivery = customer.noted(failing, 2)
    assert (delivery.state, delivery.log[-1][1]) == (State.GIVEN_UP, "the API key was revoked")
    eventually(lambda: "ended_at" in customer.stack.record(running))
    found = {each.request_id for each in all_deliveries(customer.stack.redis)}
    assert running not in found
    assert customer.stack.redis.exists(keyspace.webhook_secret(customer.owner)) == 0
    assert len(customer.there.calls) == 1
    assert run(customer.stack, "replay", failing).exit_code == 1
