"""Waits for requests to end. One poll of the broker serves all who wait, so none can be missed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import structlog

from server.errors import WaitTimeoutError
from worker.errors import BrokerUnavailableError
from worker.store.gateway_side import GatewayStore

INTERVAL_SECONDS = 0.04

_log = structlog.get_logger()


class _StoppingError(TimeoutError):
    """There is no more time, as the gateway stops."""


class Watch:
    """Polls while somebody waits, and only then."""

    def __init__(self, intake: GatewayStore) -> None:
        self._intake = intake
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None

    async def until_ended(self, request_id: str, seconds: float) -> None:
        """Return when the request is final, or gone.

        Raises:
            WaitTimeoutError: it is neither after `seconds`, or we were told to let go.
        """
        ended = asyncio.get_running_loop().create_future()
        self._waiting[request_id].add(ended)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        started = time.monotonic()
        try:
            await asyncio.wait_for(ended, seconds)
        except TimeoutError as error:
            is_stopping = isinstance(error, _StoppingError)
            seconds = time.monotonic() - started
            raise WaitTimeoutError(request_id, seconds, is_stopping=is_stopping) from None
        finally:
            self._waiting[request_id].discard(ended)
            if not self._waiting[request_id]:
                del self._waiting[request_id]

    def stop(self) -> None:
        """Whoever still waits has waited long enough."""
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(_StoppingError())

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                ended = await self._intake.ended(list(self._waiting))
            except BrokerUnavailableError:
                continue  # those who wait have their own limit
            except Exception:  # noqa: BLE001 (who waits must not wait for a poller that is gone)
                _log.exception("watch.bug")
                await asyncio.sleep(1)
                continue
            for request_id in ended:
                for future in self._waiting.get(request_id, ()):
                    if not future.done():
                        future.set_result(None)
