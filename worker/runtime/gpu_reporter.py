"""The thread that tells how much of its card a worker uses."""

from __future__ import annotations

import threading

import structlog

from models.device import Meter
from worker.errors import BrokerUnavailableError
from worker.store.worker_side import WorkerStore

TELL_SECONDS = 2.0

_log = structlog.get_logger()


class GpuReporter(threading.Thread):
    """Apart from the heart: a driver that hangs may delay no beat."""

    def __init__(self, worker: str, meter: Meter, store: WorkerStore) -> None:
        super().__init__(name="gauge", daemon=True)
        self._worker = worker
        self._meter = meter
        self._store = store

    def run(self) -> None:
        """Tell for as long as the process lives, or until the card cannot be read."""
        pause = threading.Event()
        while not pause.wait(TELL_SECONDS):
            try:
                self._store.tell_device(self._worker, self._meter())
            except BrokerUnavailableError:
                continue  # the heart says so
            except Exception:  # noqa: BLE001 (videos are made all the same)
                _log.exception("gauge.stopped")
                return
