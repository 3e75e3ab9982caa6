"""`webhook_url`: a signed POST reports the end of a request, and is retried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis as AsyncRedis

from models.mock.scenario import SCENARIO
from tests.support.services.customer import POND, Customer
from tests.support.services.receiver import ALLOWED, Call, Receiver, trap
from tests.support.stack import Stack, eventually
from worker.broker.connection import connect_gateway
from worker.store import keyspace
from worker.store.webhooks.deliveries import (
    JITTER,
    MOST_ATTEMPTS,
    PAUSES,
    Deliveries,
    Delivery,
    State,
)


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
