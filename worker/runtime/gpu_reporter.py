"""Thread that reports a worker's GPU memory and load to the broker."""

from __future__ import annotations

import threading

import structlog

from models.device import Meter
from worker.errors import BrokerUnavailableError
from worker.store.worker_side import WorkerStore

REPORT_SECONDS = 2.0

_log = structlog.get_logger()


class GpuReporter(threading.Thread):
    """A thread of its own, so that a driver that hangs delays no heartbeat."""

    def __init__(self, worker: str, meter: Meter, store: WorkerStore) -> None:
        super().__init__(name="gpu-reporter", daemon=True)
        self._worker = worker
        self._meter = meter
        self._store = store

    def run(self) -> None:
        """Report until the process ends, or until the meter fails."""
        pause = threading.Event()
        while not pause.wait(REPORT_SECONDS):
            try:
                self._store.report_device(self._worker, self._meter())
            except BrokerUnavailableError:
                continue  # the heartbeat logs it
            except Exception:  # noqa: BLE001 (videos need no meter)
                _log.exception("gpu_reporter.stopped")
                return
