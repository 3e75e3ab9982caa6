"""Background threads of a worker: a slow disk or a driver that hangs must delay no heartbeat."""

from __future__ import annotations

import threading
import time

import structlog

from models.engine import Meter
from worker.errors import BrokerUnavailableError, StorageError
from worker.outputs.base import Outputs
from worker.store.worker_side import WorkerStore

SWEEP_SECONDS = 30.0
REPORT_SECONDS = 2.0

_log = structlog.get_logger()


def start_sweeper(store: WorkerStore, outputs: Outputs, *, retention_seconds: float) -> None:
    """Start a thread that removes the videos of expired requests."""

    def repeat() -> None:
        while True:
            time.sleep(min(SWEEP_SECONDS, retention_seconds))
            try:
                sweep(store, outputs, retention_seconds=retention_seconds)
            except (BrokerUnavailableError, StorageError):
                continue  # the heartbeat logs the one, the store the other
            except Exception:  # noqa: BLE001 (the next sweep may succeed)
                _log.exception("sweep.skipped")

    threading.Thread(target=repeat, name="sweeper", daemon=True).start()


def sweep(store: WorkerStore, outputs: Outputs, *, retention_seconds: float) -> None:
    # A record lives for the retention, or longer, after the last change of its file.
    outputs.sweep(store.exists, older_than=retention_seconds)


def start_gpu_reporter(worker: str, meter: Meter, store: WorkerStore) -> threading.Thread:
    """Start a thread that reports the GPU's memory and load, until the meter fails."""

    def repeat() -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            try:
                store.report_device(worker, meter())
            except BrokerUnavailableError:
                continue  # the heartbeat logs it
            except Exception:  # noqa: BLE001 (videos need no meter)
                _log.exception("gpu_reporter.stopped")
                return

    reporter = threading.Thread(target=repeat, name="gpu-reporter", daemon=True)
    reporter.start()
    return reporter
