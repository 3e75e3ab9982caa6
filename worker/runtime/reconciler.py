"""Finds requests whose worker died and sets them going again.

Every worker runs one, and any number may look at once: each repair is one guarded script, so that
exactly one of them makes it. No lock, no leader.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from worker.store.worker_side import Recovery, WorkerStore

POPPED_SECONDS = 5.0
"""A pop is followed by a start within milliseconds, unless the worker died in between."""
MISSING_SECONDS = 30.0
SETTLE_SECONDS = 4.0
"""After an outage, a worker that lives has beaten by then: it was in a call that fails after two
tries of a second each, pauses, and calls again."""
MOST_REPAIRS = 20
"""In one pass and of one kind: the beats that keep leases wait for it."""

_log = structlog.get_logger()


class Reconciler:
    """Call `pass_over` every second."""

    def __init__(
        self,
        store: WorkerStore,
        *,
        lease_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._last_pass = monotonic()
        self._settle_seconds = min(SETTLE_SECONDS, lease_seconds)
        self._popped_since: dict[str, float] = {}
        self._missing_since: float | None = None

    def pass_over(self) -> None:
        """Look once, and repair what is overdue.

        Raises:
            BrokerUnavailableError: look again later.
        """
        overdue = self._store.overdue()
        # Before that, an outage may just have ended, in which workers could not beat.
        if overdue.watched_seconds >= self._settle_seconds:
            for request_id in overdue.expired[:MOST_REPAIRS]:
                _report(request_id, self._store.reap(request_id))
        now = self._monotonic()
        if now - self._last_pass > POPPED_SECONDS / 2:
            self._popped_since.clear()  # nor could they start what they had popped
        self._last_pass = now
        self._recover_popped(overdue.popped, now)
        self._recover_missing(overdue.missing, now)

    def _recover_popped(self, popped: list[str], now: float) -> None:
        self._popped_since = {
            request_id: self._popped_since.get(request_id, now) for request_id in popped
        }
        lost = [name for name, since in self._popped_since.items() if now - since > POPPED_SECONDS]
        for request_id in lost[:MOST_REPAIRS]:
            _report(request_id, self._store.recover(request_id))

    def _recover_missing(self, missing: int, now: float) -> None:
        if missing <= 0:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > MISSING_SECONDS:
            for request_id in self._store.unlisted()[:MOST_REPAIRS]:
                _report(request_id, self._store.recover(request_id))


def _report(request_id: str, recovery: Recovery | None) -> None:
    if recovery is not None:
        _log.warning("request.recovered", request_id=request_id, outcome=recovery.value)
