"""F30: ten thousand requests of several keys wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles

import pytest

from tests.faults.support.client import Client
from tests.support.jobs import ask_gateway, params, pop
from tests.support.stack import Stack
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.worker_side import Lease

MOST_WAITING = 20_000
PRIORITIES = (1, 1, 3)
AT_ONCE = 500
ASKED = 200
"""Polls and submits that are timed."""

Figure = Callable[[str], None]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway; what waits goes on waiting."""
    with Stack(tmp_path, engine="fake", most_waiting=str(MOST_WAITING)) as stack:
        stack.start_gateway()
        yield stack


def fill(stack: Stack, owners: list[Client], count: int) -> dict[str, Client]:
    """The first key asks for half of all before the others come."""
    asks = [owners[0]] * (count // 2)
    asks += [owners[number % len(owners)] for number in range(count - len(asks))]

    for client, priority in zip(owners, PRIORITIES, strict=True):
        stack.redis.hset(keyspace.API_KEY + client.owner, "priority", priority)

    async def submit(it: GatewayStore) -> list[str]:
        ids: list[str] = []
        for start in range(0, count, AT_ONCE):
            submits = (
                it.submit(params(f"pond {start}"), client.owner)
                for client in asks[start : start + AT_ONCE]
            )
            ids += [accepted.request_id for accepted in await asyncio.gather(*submits)]
        return ids

    ids = ask_gateway(stack.broker.url, submit, most_waiting=MOST_WAITING)
    return dict(zip(ids, asks, strict=True))


def milliseconds(seconds: list[float]) -> str:
    p50, p99 = quantiles(seconds, n=100)[49::49]
    return f"p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms"


def used_memory(stack: Stack) -> int:
    return int(stack.redis.info("memory")["used_memory"])


@pytest.mark.parametrize(
    "count",
    [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_f30_in_a_long_queue_every_position_is_the_place_in_which_it_is_run(
    stack: Stack, figure: Figure, count: int
) -> None:
    owners = [Client(stack) for _ in PRIORITIES]
    before = used_memory(stack)
    asked_by = fill(stack, owners, count)
    bytes_each = (used_memory(stack) - before) / count

    submits = []
    for number in range(ASKED if count > ASKED else 20):
        client = owners[number % len(owners)]
        started = time.perf_counter()
        request_id = client.submit()
        submits.append(time.perf_counter() - started)
        asked_by[request_id] = client
    assert stack.redis.zcard(keyspace.WAITING) == len(asked_by)

    sample = list(asked_by)[:: max(1, count // ASKED)]
    positions, polls = {}, []
    for request_id in sample:
        started = time.perf_counter()
        body = asked_by[request_id].status(request_id)
        polls.append(time.perf_counter() - started)
        assert body["status"] == "QUEUED"
        positions[request_id] = body["queue_position"]

    order = popped(stack, len(asked_by))
    assert positions == {request_id: order.index(request_id) + 1 for request_id in sample}
    assert set(order) == set(asked_by)
    assert stack.redis.zcard(keyspace.WAITING) == 0
    figure(
        f"F30: {count} waiting: status {milliseconds(polls)}; submit {milliseconds(submits)}; "
        f"{bytes_each:.0f} bytes of memory each"
    )


def popped(stack: Stack, count: int) -> list[str]:
    """The ids in the order in which a worker takes them."""
    order = []
    for _ in range(count):
        request_id = pop(stack.redis)
        assert request_id is not None
        lease = Lease(request_id, "run")
        assert stack.store.start(lease, "ann")
        assert stack.store.fail(lease, "internal", "done")
        order.append(request_id)
    return order
