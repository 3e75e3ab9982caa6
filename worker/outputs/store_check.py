"""Checks that a gateway reads the store that live workers write videos to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import structlog

from worker.errors import OtherStoreError, StorageError
from worker.outputs.base import Outputs
from worker.store.presence import LiveWorker

_log = structlog.get_logger()


class StoreCheck:
    """Remembers the result of its last look. Workers of versions without a mark count as right.

    Attributes:
        mark: of the gateway's store; None while the store does not answer.
    """

    def __init__(self, outputs: Outputs) -> None:
        self.mark: str | None = None
        self._outputs = outputs
        self._marks = {""}
        self._error: OtherStoreError | None = None

    async def look(self, workers: Iterable[LiveWorker]) -> None:
        """Compare the marks.

        Raises:
            OtherStoreError: a worker writes elsewhere.
        """
        workers = list(workers)
        if self.mark is None or any(worker.store not in self._marks for worker in workers):
            with suppress(StorageError):
                self.mark = await asyncio.to_thread(self._outputs.mark)
                self._marks.add(self.mark)
        before = self._error
        others = [worker.name for worker in workers if worker.store not in self._marks]
        self._error = OtherStoreError(others[0]) if others else None
        if self._error and not before:
            _log.error("outputs.other_store", workers=others, reason=str(self._error))
        self.check()

    def check(self) -> None:
        """Raise the error of the last look, if any."""
        if self._error:
            raise OtherStoreError(self._error.worker)
