"""The thread that removes the videos of requests that are forgotten."""

from __future__ import annotations

import threading

import structlog

from worker.errors import BrokerUnavailableError, StorageError
from worker.outputs.base import Outputs
from worker.store.worker_side import WorkerStore

SWEEP_SECONDS = 30.0

_log = structlog.get_logger()


class Sweeper(threading.Thread):
    """Apart from the heart: a large folder, or a slow disk, may delay no beat."""

    def __init__(self, store: WorkerStore, outputs: Outputs, *, retention_seconds: float) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._store = store
        self._outputs = outputs
        self._retention_seconds = retention_seconds

    def run(self) -> None:
        """Sweep for as long as the process lives."""
        pause = threading.Event()
        while not pause.wait(min(SWEEP_SECONDS, self._retention_seconds)):
            try:
                self.sweep()
            except BrokerUnavailableError:
                continue  # the heart says so
            except StorageError:
                continue  # the store has said so
            except Exception:  # noqa: BLE001 (the next sweep may do better)
                _log.exception("sweep.skipped")

    def sweep(self) -> None:
        """Look at the whole store once.

        Raises:
            BrokerUnavailableError: whether a request is forgotten cannot be known.
            StorageError: the store does not answer.
        """
        # A record outlives its file's last change by the retention, or more.
        self._outputs.sweep(self._store.exists, older_than=self._retention_seconds)
