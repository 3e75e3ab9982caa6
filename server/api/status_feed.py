"""Follows requests for those who listen. One poll of the broker serves all listeners of a gateway.

A listener that is slow, or has heard something a moment ago, is told the latest and misses what was
in between: so nothing piles up for anybody.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from worker.errors import BrokerUnavailableError
from worker.job import Job
from worker.store.gateway_side import GatewayStore

INTERVAL_SECONDS = 0.5
"""Between two looks, and at least between two words to one listener."""
HEARTBEAT_SECONDS = 15.0
"""Less than the time after which proxies take a silent connection for dead."""

_log = structlog.get_logger()


@dataclass(eq=False)
class _Listener:
    """`latest` is None when the request is gone; `is_over`: there is nothing more to be heard."""

    latest: Job | None
    is_over: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, job: Job | None) -> None:
        if job != self.latest:
            self.latest = job
            self.news.set()

    async def pause(self) -> None:
        """Until there is news, but neither too short nor too long."""
        told_at = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), HEARTBEAT_SECONDS)
        if not self.is_over:
            rest = told_at + INTERVAL_SECONDS - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, rest))

    def stop(self) -> None:
        self.is_over = True
        self.news.set()


class Feed:
    """Polls while somebody listens, and only then."""

    def __init__(self, intake: GatewayStore) -> None:
        self._intake = intake
        self._listeners: defaultdict[str, set[_Listener]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None
        self._is_over = False

    async def follow(self, job: Job) -> AsyncIterator[Job | None]:
        """Yield `job`, then the request whenever it has changed, until it has ended or is gone.

        None stands for a while in which nothing has changed.
        """
        listener = _Listener(job, is_over=self._is_over)
        self._listeners[job.request_id].add(listener)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        now: Job | None = job
        try:
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
        finally:
            self._listeners[job.request_id].discard(listener)
            if not self._listeners[job.request_id]:
                del self._listeners[job.request_id]

    def stop(self) -> None:
        """The gateway stops: who still listens may do so at another one."""
        self._is_over = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.stop()

    async def _poll(self) -> None:
        while self._listeners:
            await asyncio.sleep(INTERVAL_SECONDS)
            request_ids = list(self._listeners)
            try:
                jobs = await self._intake.look(request_ids)
            except BrokerUnavailableError:
                continue  # those who listen hear of it when it is back
            except Exception:  # noqa: BLE001 (who listens must not wait for a poller that is gone)
                _log.exception("feed.bug")
                continue
            for request_id, job in zip(request_ids, jobs, strict=True):
                for listener in self._listeners.get(request_id, ()):
                    listener.tell(job)
