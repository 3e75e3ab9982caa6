"""Thread that removes the videos of expired requests."""

from __future__ import annotations

import threading

import structlog

from worker.errors import BrokerUnavailableError, StorageError
from worker.outputs.base import Outputs
from worker.store.worker_side import WorkerStore

SWEEP_SECONDS = 30.0

_log = structlog.get_logger()


class Sweeper(threading.Thread):
    """A thread of its own, so that a large folder or a slow disk delays no heartbeat."""

    def __init__(self, store: WorkerStore, outputs: Outputs, *, retention_seconds: float) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._store = store
        self._outputs = outputs
        self._retention_seconds = retention_seconds

    def run(self) -> None:
        pause = threading.Event()
        while not pause.wait(min(SWEEP_SECONDS, self._retention_seconds)):
            try:
                self.sweep()
            except (BrokerUnavailableError, StorageError):
                continue  # the heartbeat logs the one, the store the other
            except Exception:  # noqa: BLE001 (the next sweep may succeed)
                _log.exception("sweep.skipped")

    def sweep(self) -> None:
        """Look through the whole store once.

        Raises:
            BrokerUnavailableError: the broker does not say which requests have expired.
            StorageError: the store does not answer.
        """
        # A record lives for the retention, or longer, after the last change of its file.
        self._outputs.sweep(self._store.exists, older_than=self._retention_seconds)
