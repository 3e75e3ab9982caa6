"""`mochi-server webhooks`: the deliveries, a replay, the signing secrets of keys."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from redis import Redis
from standardwebhooks import WebhookVerificationError
from typer.testing import CliRunner, Result

from server.cli import main as cli
from server.keys.audit import entries
from server.keys.record import NewKey
from server.keys.signing import signing_secret
from server.keys.store import create_key, one_key, revoke_key
from tests.support.services.customer import Customer
from tests.support.services.receiver import Receiver
from tests.support.stack import Stack, eventually
from worker.store import keyspace
from worker.store.webhooks.deliveries import JITTER, PAUSES, State, all_deliveries


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


def test_the_only_key_needs_no_name(redis: Redis, redis_url: str) -> None:
    def secret() -> Result:
        return CliRunner().invoke(
            cli.app, ["webhooks", "secret"], env={"MOCHI_REDIS_URL": redis_url}
        )

    assert "There is no key" in secret().stderr
    create_key(redis, NewKey(name="one"))
    assert secret().stdout.strip() == signing_secret(redis, "one")
    create_key(redis, NewKey(name="two"))
    refused = secret()
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "There are 2 keys: give the NAME of one" in refused.stderr


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
