"""Polls the broker for the clients that wait for the end of a request or listen to its events.

One poll serves all of them. A slow listener gets the latest state and misses the ones before it, so
nothing piles up.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from server.errors import WaitTimeoutError
from worker.errors import BrokerUnavailableError
from worker.job import Job
from worker.store.gateway_side import GatewayStore

END_INTERVAL_SECONDS = 0.04
"""Between two polls. A blocking call learns of the end of its request that soon."""
EVENT_INTERVAL_SECONDS = 0.5
"""Between two polls for listeners, and at least between two events of one stream."""
SHARE = 0.1
"""Largest share of the time that polls take: for thousands of clients they come less often, down to
the interval of events."""
NEXT = 10
"""Requests at the head of the queue, whose listeners are told of each change."""
FAR_INTERVAL_SECONDS = 2.0
"""Between two polls for listeners to requests behind them, whose place changes all the time."""
HEARTBEAT_SECONDS = 15.0
"""Shorter than the time after which proxies close a silent connection."""
BUG_PAUSE_SECONDS = 1.0

_Member = TypeVar("_Member")
_log = structlog.get_logger()


class _StoppingError(TimeoutError):
    """The gateway stops before the request has ended."""


@dataclass(eq=False)
class _Listener:
    """`latest` is None when the request is gone; `is_over`: the stream ends."""

    latest: Job | None
    is_over: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, job: Job | None) -> None:
        if job != self.latest:
            self.latest = job
            self.news.set()

    @property
    def is_far(self) -> bool:
        return self.latest is not None and (self.latest.position or 0) > NEXT

    async def pause(self) -> None:
        """Wait for news: at least the interval of events, at most that of heartbeats."""
        told_at = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), HEARTBEAT_SECONDS)
        if not self.is_over:
            rest = told_at + EVENT_INTERVAL_SECONDS - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, rest))

    def stop(self) -> None:
        self.is_over = True
        self.news.set()


class Poller:
    """Polls while there is a client to serve."""

    def __init__(self, store: GatewayStore) -> None:
        self._store = store
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._listeners: defaultdict[str, set[_Listener]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._has_stopped_events = False
        self._has_stopped_waiting = False

    async def wait_for_end(self, request_id: str, seconds: float) -> None:
        """Return when the request is final, or gone.

        Raises:
            WaitTimeoutError: it is neither after `seconds`, or when `stop_waiting` is called.
        """
        ended = asyncio.get_running_loop().create_future()
        if self._has_stopped_waiting:
            ended.set_exception(_StoppingError())
        started = time.monotonic()
        with self._registered(self._waiters, request_id, ended):
            try:
                await asyncio.wait_for(ended, seconds)
            except TimeoutError as error:
                is_stopping = isinstance(error, _StoppingError)
                seconds = time.monotonic() - started
                raise WaitTimeoutError(request_id, seconds, is_stopping=is_stopping) from None

    async def follow(self, job: Job) -> AsyncIterator[Job | None]:
        """Yield `job`, then the request whenever it has changed, until it has ended or is gone.

        Yield None where a heartbeat is due.
        """
        listener = _Listener(job, is_over=self._has_stopped_events)
        now: Job | None = job
        with self._registered(self._listeners, job.request_id, listener):
            yield now
            while now and not now.status.is_final and not listener.is_over:
                await listener.pause()
                if not listener.news.is_set():
                    yield None
                    continue
                listener.news.clear()
                now = listener.latest
                if now and not listener.is_over:
                    yield now

    def stop_events(self) -> None:
        """End all streams of events: their clients reconnect to another gateway."""
        self._has_stopped_events = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.stop()

    def stop_waiting(self) -> None:
        """Let all blocking calls time out, also those that have yet to begin their wait."""
        self._has_stopped_waiting = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(_StoppingError())

    @contextmanager
    def _registered(
        self, members: defaultdict[str, set[_Member]], request_id: str, member: _Member
    ) -> Iterator[None]:
        members[request_id].add(member)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            members[request_id].discard(member)
            if not members[request_id]:
                del members[request_id]

    async def _run(self) -> None:
        polled_at = polled_far_at = time.monotonic()
        pause = END_INTERVAL_SECONDS
        while self._waiters or self._listeners:
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                if self._waiters:
                    await self._poll_for_waiters()
                if began - polled_at >= EVENT_INTERVAL_SECONDS:
                    polled_at, with_far = began, began - polled_far_at >= FAR_INTERVAL_SECONDS
                    polled_far_at = began if with_far else polled_far_at
                    await self._poll_for_listeners(with_far=with_far)
            except BrokerUnavailableError:
                continue  # waiters have their own limit, listeners get the state after it
            except Exception:  # noqa: BLE001 (without the poller its clients would wait for ever)
                _log.exception("poller.bug")
                await asyncio.sleep(BUG_PAUSE_SECONDS)
            took = time.monotonic() - began
            pause = min(max(END_INTERVAL_SECONDS, took / SHARE), EVENT_INTERVAL_SECONDS)

    async def _poll_for_waiters(self) -> None:
        for request_id in await self._store.ended(list(self._waiters)):
            for waiter in self._waiters.get(request_id, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def _poll_for_listeners(self, *, with_far: bool) -> None:
        request_ids = [
            request_id
            for request_id, listeners in self._listeners.items()
            if with_far or not all(listener.is_far for listener in listeners)
        ]
        if not request_ids:
            return
        jobs = await self._store.look(request_ids)
        for request_id, job in zip(request_ids, jobs, strict=True):
            for listener in self._listeners.get(request_id, ()):
                listener.tell(job)
