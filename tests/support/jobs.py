"""Requests for tests of the job system, submitted and looked at as the gateway does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import pytest
from redis import Redis

from models.engine import Traits
from models.request.catalogue import CATALOGUE
from models.request.params import MODEL, GenerateParams
from worker.broker.connection import connect_gateway
from worker.job import Job
from worker.store import keyspace, scripts
from worker.store.gateway_side import GatewayStore
from worker.store.presence import LiveWorker
from worker.store.submits import NOTHING

OWNER = "a-key"

_Result = TypeVar("_Result")


def params(prompt: str = "a pond", model: str = MODEL, **others: Any) -> GenerateParams:
    """Ten steps, one frame: little work."""
    given: dict[str, Any] = {"prompt": prompt, "frames": 1, "steps": 10} | others
    return CATALOGUE[model].parameters(**given)


def live(name: str = "ann", *models: str, loras: Iterable[str] = ()) -> LiveWorker:
    """A worker with some engine, of the default model if none is given."""
    engine = Traits("some weights", "CPU", "float32", loras=dict.fromkeys(loras, "a digest"))
    return LiveWorker(name, engine, models=models or (MODEL,))


def ask_gateway(
    url: str, ask: Callable[[GatewayStore], Awaitable[_Result]], *, most_waiting: int = 1000
) -> _Result:
    """What `ask` gets from a gateway."""

    async def run() -> _Result:
        async with connect_gateway(url) as redis:
            return await ask(GatewayStore(redis, most_waiting=most_waiting, retention_seconds=60))

    return asyncio.run(run())


def submit(
    url: str,
    prompt: str = "a pond",
    *,
    scenario: str = "",
    record: Mapping[str, str] = NOTHING,
    **others: Any,
) -> str:
    """The id of a new request, with a mock scenario if one is given, and fields of its record.

    `others`: parameters, of frames and of files, and the model.
    """
    further = {**record, "scenario": scenario} if scenario else record
    asked = CATALOGUE[others.get("model", MODEL)].request(
        **params(prompt, **others).model_dump() | others
    )
    return ask_gateway(url, lambda it: it.submit(asked, OWNER, further=further)).request_id


def find(url: str, request_id: str) -> Job:
    """The request as it is now."""
    return ask_gateway(url, lambda it: it.find(request_id, OWNER))


def answer_with(monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Clients made from now on run these scripts in place of ours of the same names."""
    ours = scripts.source
    monkeypatch.setattr(scripts, "source", lambda name: sources.get(name) or ours(name))


def pop(redis: Redis, *sources: str) -> str | None:
    """The next id, popped as a worker of these queues does, or of the default one."""
    script = redis.register_script(scripts.source("pop"))
    popped = script(keys=keyspace.for_scripts(), args=sources or [MODEL])
    return None if popped is None else str(popped)


def waiting(redis: Redis) -> list[str]:
    """Ids that a worker may pop, the next one first."""
    return list(redis.lrange(keyspace.RQ_QUEUE, 0, -1))  # type: ignore[arg-type]


def queue_of(redis: Redis, request_id: str) -> keyspace.QueueKeys:
    """The keys of the queue that the request's record names."""
    return keyspace.QUEUES[str(redis.hget(keyspace.record(request_id), "queue") or MODEL)]


def end_lease(redis: Redis, request_id: str) -> None:
    """As if the worker had been silent for the length of a lease."""
    assert redis.zadd(queue_of(redis, request_id).leases, {request_id: 1}, xx=True, ch=True)


def make_webhook_due(redis: Redis, request_id: str) -> None:
    """As if the time for the next attempt had come, or the sender's lease had ended."""
    owner = str(redis.hget(keyspace.WEBHOOK + request_id, "owner"))
    assert redis.zadd(f"{keyspace.WEBHOOKS}:{owner}", {request_id: 1}, xx=True, ch=True)
    redis.zadd(keyspace.WEBHOOKS, {owner: 1})
