"""The broker of an experiment, and what may happen to it: our own dies, another one drops us."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from redis import Redis

from tests.bench.processes import BenchError
from tests.chaos.faults import Kind
from tests.chaos.history import Event, What
from worker.broker.connection import broker_errors, connect_briefly
from worker.broker.embedded import EmbeddedBroker

OUR_KEYS = ("mochi:*", "rq:*")


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
