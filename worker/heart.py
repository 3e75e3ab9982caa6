"""The thread that beats: it keeps the lease, looks after the dead, and ends a worker that hangs."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

import structlog

from worker.contact import Contact
from worker.errors import BrokerUnavailableError
from worker.keyspace import BEAT_SECONDS, LOOK_SECONDS
from worker.live import LiveWorker
from worker.reconciler import Reconciler
from worker.run import Run
from worker.stop import Stop
from worker.store import JobStore, Order

LONGEST_BEAT_SECONDS = 30.0
"""Far more than a beat and a pass with many repairs take, whatever the broker does."""
STDERR = 2

_log = structlog.get_logger()


class Heart(threading.Thread):
    """Beats for `worker` until stopped; `run_now` is what the worker does at the moment."""

    def __init__(
        self,
        worker: LiveWorker,
        store: JobStore,
        reconciler: Reconciler,
        contact: Contact,
        *,
        stall_seconds: float,
        stop: Stop,
    ) -> None:
        super().__init__(name="heart", daemon=True)
        self.run_now: Run | None = None
        self._worker = worker
        self._store = store
        self._reconciler = reconciler
        self._contact = contact
        self._stall_seconds = stall_seconds
        self._told = stop  # a Thread has a `_stop` of its own
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat, and every second look for overdue requests."""
        next_pass = time.monotonic()
        while not self._stopped.wait(BEAT_SECONDS):
            self._end_if_frozen()
            self._end_if_hung()
            try:
                if self._contact.is_new:
                    self._contact.warn(self._store.dangers())
                self._beat()
                if time.monotonic() >= next_pass:
                    next_pass = time.monotonic() + LOOK_SECONDS
                    self._reconciler.pass_over()
                self._contact.made()
            except BrokerUnavailableError as error:
                self._contact.lost(error)
            except Exception:  # noqa: BLE001 (a heart that stops kills a healthy worker)
                _log.exception("heart.skipped")
        faulthandler.cancel_dump_traceback_later()

    def stop(self) -> None:
        """Stop beating and sign the worker off."""
        self._stopped.set()
        self.join()
        try:
            self._store.sign_off(self._worker)
        except BrokerUnavailableError:
            _log.warning("worker.not_signed_off", hint="it counts as alive until its lease ends")

    def _beat(self) -> None:
        run = self.run_now
        takes_more = not self._told.soon
        if run is None:
            orders = self._store.beat(self._worker, takes_more=takes_more)
        elif self._told.now and run.is_watched:
            self._give_back(run)
            orders = self._store.beat(self._worker, takes_more=False)
        else:
            orders = self._store.beat(
                self._worker, run.lease, run.step, run.stage, takes_more=takes_more
            )
            if Order.LOST in orders:
                run.lost.set()
            if Order.CANCEL in orders:
                run.cancelled.set()
            self._show_preview(run)
        if Order.DRAIN in orders and not self._told.soon:
            self._told.drain()
            _log.info("worker.draining")

    def _show_preview(self, run: Run) -> None:
        if run.preview is not None:
            (step, picture), run.preview = run.preview, None
            self._store.preview(run.lease, step, picture)

    def _give_back(self, run: Run) -> None:
        """Not left to the run: its step, or a call that hangs, may last longer than we may."""
        if not run.is_given_back:
            _log.info("run.given_back", **run.names, step=run.step)
            run.is_given_back = True
        self._store.give_back(run.lease)

    def _end_if_hung(self) -> None:
        """A call that never returns cannot be interrupted: only the end of the process frees it."""
        run = self.run_now
        if run is not None and run.silent_seconds() > self._stall_seconds:
            _log.error("worker.hung", **run.names, step=run.step)
            os._exit(os.EX_TEMPFAIL)  # start it again

    def _end_if_frozen(self) -> None:
        """C code that lets no thread run Python stops the heart as well, but not this timer."""
        seconds = self._stall_seconds + LONGEST_BEAT_SECONDS
        faulthandler.dump_traceback_later(seconds, file=STDERR, exit=True)
