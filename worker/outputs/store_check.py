"""Checks that a gateway reads the store that live workers write videos to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from worker.errors import OtherStoreError, StorageError, StoreUnverifiedError
from worker.outputs.base import MARK_SECONDS, Outputs
from worker.store.gateway_side import GatewayStore
from worker.store.presence import LiveWorker

GRACE_SECONDS = 3 * MARK_SECONDS
"""For which a replaced mark counts: workers read the new one a little later."""

_log = structlog.get_logger()


class StoreCheck:
    """Compares marks in the background. Workers that could read none count as right.

    Attributes:
        problem: that the last look has found.
    """

    def __init__(
        self,
        outputs: Outputs,
        store: GatewayStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: StoreUnverifiedError | None = None
        self._outputs = outputs
        self._store = store
        self._clock = clock
        self._mark = ""
        self._read_at: dict[str, float] = {}
        self._others: list[str] = []
        self._is_silent = False
        self._is_shared = True

    async def look(self) -> None:
        """Compare the marks, and tell workers the gateway's if none contradicts.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        workers = [worker for worker in await self._store.live_workers() if worker.store]
        if self._age(self._mark) >= MARK_SECONDS or self._strangers(workers):
            await self._read()
        others = self._strangers(workers)
        if not others:
            # Else a gateway with wrong settings would stop the workers of the others.
            await self._store.announce_store(self._mark)
            self._is_shared = True
        else:
            # Requests go to the other workers if they know this gateway's mark.
            agreed = await self._store.announced_store()
            self._is_shared = len(others) < len(workers) and agreed == self._mark
        self._note(others)

    @property
    def refusal(self) -> StoreUnverifiedError | None:
        """The problem, if it could keep the client of a new request from its video."""
        return None if self._is_shared or not self.problem else type(self.problem)()

    def _strangers(self, workers: list[LiveWorker]) -> list[str]:
        return [worker.name for worker in workers if self._age(worker.store) >= GRACE_SECONDS]

    def _age(self, mark: str) -> float:
        """Seconds since the store had this mark."""
        return self._clock() - self._read_at.get(mark, float("-inf"))

    async def _read(self) -> None:
        try:
            self._mark = await asyncio.to_thread(self._outputs.mark)
        except StorageError as error:
            if not self._is_silent:
                _log.error("outputs.away", reason=str(error))
            self._is_silent = True
        else:
            self._read_at[self._mark] = self._clock()
            self._is_silent = False

    def _note(self, others: list[str]) -> None:
        if others and not self._others:
            _log.error("outputs.other_store", workers=others, reason=str(OtherStoreError()))
        self._others = others
        if self._is_silent:
            self.problem = StoreUnverifiedError()
        else:
            self.problem = None if self._is_shared else OtherStoreError()
