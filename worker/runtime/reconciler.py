"""Finds requests whose worker died, and requeues or fails them.

Every worker runs a reconciler, without lock or leader. Each repair is one guarded script, so
exactly one of several reconcilers makes it. While no worker is alive, one of the gateways looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from worker.errors import BrokerUnavailableError
from worker.store.worker_side import Recovery, WorkerStore

POPPED_SECONDS = 5.0
"""A start follows its pop within milliseconds, unless the worker died in between."""
MISSING_SECONDS = 30.0
SETTLE_SECONDS = 4.0
"""After an outage, a live worker sends a heartbeat within this time: a call under way fails after
two tries of a second each, pauses, and is repeated."""
MOST_REPAIRS = 20
"""Of one kind in one pass: the heartbeats that renew leases wait for the pass."""

_log = structlog.get_logger()


class Reconciler:
    """Call `reconcile` every second.

    Attributes:
        is_active: whether the last pass looked. A worker's always does.
    """

    def __init__(
        self,
        store: WorkerStore,
        *,
        lease_seconds: float,
        gateway: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_active = False
        self._store = store
        self._gateway = gateway
        self._monotonic = monotonic
        self._last_pass = monotonic()
        self._settle_seconds = min(SETTLE_SECONDS, lease_seconds)
        self._popped_since: dict[str, float] = {}
        self._missing_since: float | None = None
        self._missing: list[str] = []
        self._broken: set[str] = set()
        """Requests whose repair failed, so that the log has each once."""

    def reconcile(self) -> None:
        """Look once, and repair what is overdue.

        Raises:
            BrokerUnavailableError: call again later.
        """
        overdue = self._store.overdue(self._gateway)
        self.is_active = overdue is not None
        if overdue is None:
            self._missing_since = None  # others look meanwhile, and may repair it
            return
        # Earlier, an outage in which workers could send no heartbeat may just have ended.
        if overdue.watched_seconds >= self._settle_seconds:
            self._broken &= {*overdue.expired, *overdue.popped, *self._missing}
            for request_id in self._in_turn(overdue.expired):
                self._repair(request_id, self._store.reap)
        now = self._monotonic()
        if now - self._last_pass > POPPED_SECONDS / 2:
            self._popped_since.clear()  # in an outage, workers could not start what they popped
        self._last_pass = now
        self._recover_popped(overdue.popped, now)
        self._recover_missing(overdue.missing, now)

    def _recover_popped(self, popped: list[str], now: float) -> None:
        self._popped_since = {
            request_id: self._popped_since.get(request_id, now) for request_id in popped
        }
        lost = [name for name, since in self._popped_since.items() if now - since > POPPED_SECONDS]
        for request_id in self._in_turn(lost):
            self._repair(request_id, self._store.recover)

    def _recover_missing(self, missing: int, now: float) -> None:
        if missing <= 0:
            self._missing_since, self._missing = None, []
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > MISSING_SECONDS:
            self._missing = self._store.unlisted()
            for request_id in self._in_turn(self._missing):
                self._repair(request_id, self._store.recover)

    def _in_turn(self, request_ids: list[str]) -> list[str]:
        """As many as one pass repairs; first those whose repair has not failed yet."""
        return sorted(request_ids, key=self._broken.__contains__)[:MOST_REPAIRS]

    def _repair(self, request_id: str, act: Callable[[str], Recovery | None]) -> None:
        """A record that cannot be repaired must not keep the others from it."""
        try:
            recovery = act(request_id)
        except BrokerUnavailableError as error:
            if not error.is_refusal:
                raise
            if request_id not in self._broken:
                _log.error("request.unrepaired", request_id=request_id, reason=error.reason)
                self._broken.add(request_id)
            return
        if recovery is not None:
            _log.warning("request.recovered", request_id=request_id, outcome=recovery.value)
