"""A sender whose owner's key is revoked during an attempt."""

from __future__ import annotations

import asyncio

from redis import Redis

from server.keys.lookup import digest
from server.keys.record import NewKey
from server.keys.store import create_key, revoke_key
from server.webhooks.address_rules import Guard
from server.webhooks.caller import Caller
from server.webhooks.sender import Sender
from tests.support.jobs import ask_gateway, params
from tests.support.services.receiver import ALLOWED, receiver
from tests.support.stack import eventually
from worker.broker.connection import connect_gateway
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.webhooks.deliveries import Deliveries, Delivery, State, all_deliveries


def test_a_key_that_is_revoked_during_an_attempt_gets_no_secret(
    redis: Redis, redis_url: str
) -> None:
    owner = str(redis.hget(keyspace.SECRETS, digest(create_key(redis, NewKey(name="ann")))))

    async def end_request(store: GatewayStore) -> None:
        further = {"webhook_url": there.url, "webhook_base": "https://us.example"}
        accepted = await store.submit(params(), owner, further=further)
        await store.cancel(accepted.request_id, owner)

    async def revoke(_delivery: Delivery) -> str:
        revoke_key(redis, owner)
        return "{}"

    async def send() -> None:
        async with connect_gateway(redis_url) as client:
            deliveries = Deliveries(client, retention_seconds=60)
            sender = Sender(deliveries, Caller(Guard(ALLOWED)), revoke)
            sender.start()
            await asyncio.to_thread(eventually, lambda: all_deliveries(redis)[0].log)
            await sender.stop()

    with receiver() as there:
        ask_gateway(redis_url, end_request)
        asyncio.run(send())
    assert not there.calls
    (delivery,) = all_deliveries(redis)
    assert delivery.state is State.GIVEN_UP
    assert [what for _, what in delivery.log] == ["the API key was revoked"]
    assert not redis.exists(keyspace.webhook_secret(owner))
