"""The broker of an experiment: what may happen to it, and what it holds when all is quiet.

Our own dies, another one drops us.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from redis import Redis

from tests.bench.processes import BenchError
from tests.chaos.faults import Kind
from tests.chaos.history import Event, What
from worker.broker.connection import broker_errors, connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.store import keyspace

OUR_KEYS = ("mochi:*", "rq:*")
FOR_EVER = -1
"""The time to live of a key that has none; -2 is that of a key that has just expired."""


class Broker(Protocol):
    """What an experiment needs of either."""

    @property
    def url(self) -> str:
        """Where clients connect to."""

    @property
    def fault(self) -> Kind:
        """What can be done to it."""

    async def fail(self, seconds: float) -> None:
        """Do it; for so long, where it lasts."""


class OwnBroker:
    """An embedded one."""

    fault = Kind.BROKER

    def __init__(self, broker: EmbeddedBroker, note: Callable[[Event], None]) -> None:
        self._broker = broker
        self._note = note
        self.url = broker.url

    async def fail(self, seconds: float) -> None:
        """Kill it, and start it again after so long."""
        with broker_errors(), connect_briefly(self.url) as redis:
            pid = redis.info("server")["process_id"]
        self._note(Event(time.time(), What.BROKER_DOWN))
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._start)
        self._note(Event(time.time(), What.BROKER_UP))

    def _start(self) -> None:
        while not self._broker.is_alive():  # the dying one may hold the folder for a moment
            self._broker.start()
            time.sleep(0.01)


class ExternalBroker:
    """One that is there already, and lives on."""

    fault = Kind.CONNECTIONS

    def __init__(self, url: str) -> None:
        self.url = url

    async def fail(self, _seconds: float) -> None:
        """Drop the connections of all its clients."""
        with broker_errors(), connect_briefly(self.url) as redis:
            redis.client_kill_filter(_type="normal", skipme=True)


@contextmanager
def own_broker(folder: Path, note: Callable[[Event], None]) -> Iterator[Broker]:
    """An embedded broker in `folder`."""
    broker = EmbeddedBroker(folder)
    broker.start()
    try:
        yield OwnBroker(broker, note)
    finally:
        broker.stop()


@contextmanager
def external_broker(url: str) -> Iterator[Broker]:
    """The broker at `url`; what we write there is removed in the end.

    Raises:
        BenchError: its database holds something.
        BrokerUnavailableError: it does not answer.
    """
    with broker_errors(), connect_briefly(url) as redis:
        keys = redis.dbsize()
        if keys:
            raise BenchError(
                f"The database at MOCHI_REDIS_URL holds {keys} keys: it is no place for an "
                "experiment. Give an empty one, like redis://127.0.0.1:6379/9."
            )
        try:
            yield ExternalBroker(url)
        finally:
            _clear(redis)


def _clear(redis: Redis) -> None:
    for pattern in OUR_KEYS:
        for key in redis.scan_iter(pattern, count=1000):
            redis.delete(key)


@dataclass(frozen=True)
class Record:
    """What the broker says of a request; `cost` in millionths."""

    owner: str
    status: str
    cost: int
    file_name: str


def records_of(url: str) -> dict[str, Record]:
    """Of all requests, by id."""
    records = {}
    with broker_errors(), connect_briefly(url) as redis:
        for key in redis.scan_iter(keyspace.record("*"), count=1000):
            owner, status, cost, file_name = redis.hmget(
                key, "owner", "status", "cost", "file_name"
            )
            name = str(key).removeprefix(keyspace.record(""))
            records[name] = Record(owner or "", status or "", int(cost or 0), file_name or "")
    return records


def accounts_of(url: str) -> dict[str, dict[str, str]]:
    """The hash of each API key, by the key's id."""
    with broker_errors(), connect_briefly(url) as redis:
        return {
            str(key).removeprefix(keyspace.API_KEY): redis.hgetall(key)
            for key in redis.scan_iter(keyspace.API_KEY + "*")
        }


def cache_counts(url: str) -> dict[str, int]:
    """What the result cache has counted, by outcome."""
    prefix = "cache "
    with broker_errors(), connect_briefly(url) as redis:
        counts = redis.hgetall(keyspace.METRICS)
    return {
        str(name).removeprefix(prefix): int(count)
        for name, count in sorted(counts.items())
        if str(name).startswith(prefix)
    }


def forgotten_keys(url: str) -> list[str]:
    """Keys of the result cache that stay for ever, now that no request waits or runs."""
    prefixes = (keyspace.MAKERS, keyspace.TWINS, keyspace.SHARERS)
    with broker_errors(), connect_briefly(url) as redis:
        keys = [str(key) for prefix in prefixes for key in redis.scan_iter(f"{prefix}*")]
        return sorted(key for key in keys if redis.pttl(key) == FOR_EVER)
