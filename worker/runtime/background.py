"""Background threads: in a worker, a slow disk or a driver that hangs must delay no heartbeat."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from uuid import uuid4

import structlog

from models.engine import EncodeAhead, Meter
from worker.errors import BrokerUnavailableError, StorageError
from worker.outputs.base import MARK_SECONDS, Outputs
from worker.process.shutdown import Stop
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.runtime.run import Run
from worker.store.keyspace import LOADING_SECONDS, RECONCILE_SECONDS
from worker.store.worker_side import WorkerStore

SWEEP_SECONDS = 30.0
CLAIMED = 0.9
"""Share of this time that a sweep is claimed for, so that a lone process sweeps each time."""
REPORT_SECONDS = 2.0
PEEK_SECONDS = 1.0
AHEAD_FROM = 60
"""Per cent of a run. Earlier, more workers would encode the prompt that one of them takes."""
LEAST_PRIORITY = 19
"""Of Unix: the nicest."""

_log = structlog.get_logger()


def start_fallback_reconciler(
    store: WorkerStore, outputs: Outputs, *, lease_seconds: float, retention_seconds: float
) -> None:
    """In a gateway, reconcile and sweep while no worker is alive to do it."""
    reconciler = Reconciler(store, lease_seconds=lease_seconds, gateway=uuid4().hex)

    def repeat() -> None:
        while True:
            time.sleep(RECONCILE_SECONDS)
            try:
                reconciler.reconcile()
            except BrokerUnavailableError:
                continue  # the gateway's check of the broker logs it
            except Exception:  # noqa: BLE001 (the next pass may succeed)
                _log.exception("reconciler.skipped")

    threading.Thread(target=repeat, name="reconciler", daemon=True).start()
    start_sweeper(
        store,
        outputs,
        retention_seconds=retention_seconds,
        is_needed=lambda: reconciler.is_active,
    )


def start_sweeper(
    store: WorkerStore,
    outputs: Outputs,
    *,
    retention_seconds: float,
    is_needed: Callable[[], bool] = lambda: True,
) -> None:
    """Start a thread that removes the videos of expired requests, while it is needed.

    Of all processes on a store, one lists its files at a time: S3 charges for each list.
    """
    every = min(SWEEP_SECONDS, retention_seconds)

    def repeat() -> None:
        while True:
            time.sleep(every)
            if not is_needed():
                continue
            try:
                sweep(store, outputs, retention_seconds=retention_seconds, every=every)
            except (BrokerUnavailableError, StorageError):
                continue  # the heartbeat logs the one, the store the other
            except Exception:  # noqa: BLE001 (the next sweep may succeed)
                _log.exception("sweep.skipped")

    threading.Thread(target=repeat, name="sweeper", daemon=True).start()


def sweep(store: WorkerStore, outputs: Outputs, *, retention_seconds: float, every: float) -> None:
    """One of all processes' sweeps, each of which comes `every` so many seconds."""
    # A record lives for the retention, or longer, after the last change of its file.
    outputs.sweep(
        store.exists,
        older_than=retention_seconds,
        is_turn=lambda: store.claim_sweep(outputs.mark(), CLAIMED * every),
    )


@contextmanager
def loading(store: WorkerStore) -> Iterator[None]:
    """Announce, until the block ends, that this worker is loading the model."""
    is_loaded = threading.Event()

    def repeat() -> None:
        while True:
            with suppress(BrokerUnavailableError):
                store.announce_loading()
            if is_loaded.wait(LOADING_SECONDS / 3):
                return

    thread = threading.Thread(target=repeat, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_loaded.set()
        thread.join()
        with suppress(BrokerUnavailableError):
            store.end_loading()


def start_mark_reader(outputs: Outputs, heartbeat: Heartbeat) -> None:
    """Start a thread that keeps the announced mark of the store up to date."""

    def repeat() -> None:
        while True:
            time.sleep(MARK_SECONDS)
            read_mark(outputs, heartbeat)

    threading.Thread(target=repeat, name="mark-reader", daemon=True).start()


def read_mark(outputs: Outputs, heartbeat: Heartbeat) -> None:
    """Announce the mark that the store has now; the one before, if it does not answer."""
    try:
        mark = outputs.mark()
    except StorageError as error:
        _log.warning("outputs.away", reason=str(error))
    else:
        heartbeat.worker = replace(heartbeat.worker, store=mark)


def start_encoding_ahead(
    encode: EncodeAhead, store: WorkerStore, heartbeat: Heartbeat, stop: Stop
) -> threading.Thread:
    """Start a thread that encodes, towards the end of a run, the texts of the request that is next.

    The pop still decides: if another worker takes the request, or one comes before it, the work is
    lost. The thread has the lowest priority, and ends when the worker drains.
    """

    def repeat() -> None:
        _give_way()
        latest = ""
        while True:
            time.sleep(PEEK_SECONDS)
            if stop.draining:
                return
            run = heartbeat.current_run
            if run is None or run.progress < AHEAD_FROM:
                continue
            try:
                request_id, params = store.peek() or ("", None)
                if params is None or request_id == latest:
                    continue
                latest = request_id
                began = time.perf_counter()
                encode(params)
            except BrokerUnavailableError:
                continue  # the heartbeat logs it
            # The run of that request encodes them, then. A panic of the tokenizer's Rust is no
            # `Exception`.
            except BaseException as error:  # noqa: BLE001
                _log.info("prompt.not_encoded_ahead", reason=type(error).__name__)
            else:
                seconds = round(time.perf_counter() - began, 3)
                _log.info("prompt.encoded_ahead", request_id=request_id, seconds=seconds)

    thread = threading.Thread(target=repeat, name="encode-ahead", daemon=True)
    thread.start()
    return thread


def _give_way() -> None:
    """Let all other threads go first. Those that torch starts for this one do as it does."""
    if sys.platform == "linux":  # elsewhere a priority is that of the process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


def start_gpu_reporter(
    worker: str, meter: Meter, store: WorkerStore, current_run: Callable[[], Run | None]
) -> threading.Thread:
    """Start a thread that reports the GPUs' memory and load, until the meter fails.

    It also reads the energy of the current run, if any: the heartbeat may end that run, and must
    not wait for a driver.
    """

    def repeat() -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            try:
                if run := current_run():
                    run.energy.read()
                store.report_devices(worker, meter())
            except BrokerUnavailableError:
                continue  # the heartbeat logs it
            except Exception:  # noqa: BLE001 (videos need no meter)
                _log.exception("gpu_reporter.stopped")
                return

    reporter = threading.Thread(target=repeat, name="gpu-reporter", daemon=True)
    reporter.start()
    return reporter
