"""Heartbeat thread: renews the lease, runs the reconciler, ends a process whose engine hangs."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

from worker.broker.health import BrokerLog
from worker.errors import BrokerUnavailableError
from worker.process.logs import end_at_once
from worker.process.shutdown import Stop
from worker.process.systemd import Notifier
from worker.runtime.reconciler import Reconciler
from worker.runtime.run import Run
from worker.store.keyspace import HEARTBEAT_SECONDS, RECONCILE_SECONDS
from worker.store.presence import LiveWorker
from worker.store.worker_side import Order, WorkerStore

LONGEST_BEAT_SECONDS = 30.0
"""Far longer than a heartbeat and a pass with many repairs take, whatever the broker does."""
STDERR = 2

_log = structlog.get_logger()


class Heartbeat(threading.Thread):
    """Beats for `worker` until stopped.

    Attributes:
        worker: the record that it announces; replace it to announce a change.
        current_run: what the worker runs at present; the runner sets it.
    """

    def __init__(
        self,
        worker: LiveWorker,
        store: WorkerStore,
        reconciler: Reconciler,
        broker_log: BrokerLog,
        *,
        stall_seconds: float,
        stop: Stop,
        alive_file: str = "",
        notifier: Notifier | None = None,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.current_run: Run | None = None
        self.worker = self._announced = worker
        self._store = store
        self._reconciler = reconciler
        self._broker_log = broker_log
        self._stall_seconds = stall_seconds
        self._shutdown = stop  # a Thread has a `_stop` of its own
        self._alive_file = alive_file
        self._notifier = notifier or Notifier()
        self._stopped = threading.Event()

    def run(self) -> None:
        next_pass = time.monotonic()
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._end_if_frozen()
            self._end_if_hung()
            self._show_life()
            try:
                if self._broker_log.is_new:
                    self._broker_log.warn(self._store.dangers())
                self._beat()
                if time.monotonic() >= next_pass:
                    next_pass = time.monotonic() + RECONCILE_SECONDS
                    self._reconciler.reconcile()
                self._broker_log.connected()
            except BrokerUnavailableError as error:
                self._broker_log.disconnected(error)
            except Exception:  # noqa: BLE001 (without heartbeats a healthy worker counts as dead)
                _log.exception("heartbeat.skipped")
        faulthandler.cancel_dump_traceback_later()

    def stop(self) -> None:
        """Stop beating and sign the worker off."""
        self._stopped.set()
        self.join()
        try:
            self._store.sign_off(self._announced)
        except BrokerUnavailableError:
            _log.warning("worker.not_signed_off", hint="it counts as alive until its lease ends")

    def _beat(self) -> None:
        run = self.current_run
        takes_more = not self._shutdown.draining
        worker = self.worker
        if run is None:
            orders = self._store.beat(worker, takes_more=takes_more)
        elif self._shutdown.urgent and run.is_watched:
            self._requeue(run)
            orders = self._store.beat(worker, takes_more=False)
        else:
            now = (run.step, run.stage, run.progress)
            orders = self._store.beat(worker, run.lease, *now, takes_more=takes_more)
            if Order.LOST in orders:
                run.lost.set()
            if Order.CANCEL in orders:
                run.cancelled.set()
            if run.preview is not None:
                (step, picture), run.preview = run.preview, None
                self._store.preview(run.lease, step, picture)
        if worker != self._announced:  # after the new one, or there is a moment without any
            self._store.withdraw(self._announced)
            self._announced = worker
        if Order.DRAIN in orders and not self._shutdown.draining:
            self._shutdown.draining = True
            _log.info("worker.draining")

    def _requeue(self, run: Run) -> None:
        """Here, not in the run: its step may last longer than the process has left."""
        if not run.is_requeued:
            _log.info("run.requeued", **run.log_fields, step=run.step)
            run.is_requeued = True
        self._store.requeue(run.lease, run.energy.joules)

    def _end_if_hung(self) -> None:
        """A call that never returns cannot be interrupted; only the end of the process frees it."""
        run = self.current_run
        if run is not None and run.silent_seconds() > self._stall_seconds:
            _log.error("worker.hung", **run.log_fields, step=run.step)
            end_at_once(os.EX_TEMPFAIL)  # the supervisor starts it again

    def _show_life(self) -> None:
        """For systemd, and for health checks that start no process of ours and need no broker."""
        if self._shutdown.draining:
            self._notifier.draining()
        else:
            self._notifier.serving(f"Ready: {self.worker.engine}")
        if self._alive_file:
            with suppress(OSError):  # a full disk must cost no heartbeat
                Path(self._alive_file).touch()

    def _end_if_frozen(self) -> None:
        """Rearm a timer outside Python: native code that holds the GIL stops this thread too.

        It writes to standard error itself: no thread of Python's, such as that of the log, runs.
        """
        seconds = self._stall_seconds + LONGEST_BEAT_SECONDS
        faulthandler.dump_traceback_later(seconds, file=STDERR, exit=True)
