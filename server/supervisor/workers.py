"""`mochi-server worker --workers N`: a worker on each card, restarted when it dies."""

from __future__ import annotations

import os
import signal
import time

from server.settings import ServerSettings
from server.supervisor.children import WATCH_SECONDS, end_children
from server.supervisor.pool import WorkerPool
from worker.process.logs import configure_logs
from worker.process.shutdown import Stop, on_signals
from worker.process.systemd import Notifier


def run_workers(settings: ServerSettings) -> int:
    """Run the workers until a signal arrives, or every one rejects its settings.

    Returns:
        The exit status.
    """
    configure_logs()
    stop = Stop()
    on_signals(lambda *_: stop.ask(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    notifier = Notifier.take(os.environ)  # a child's own is that of its supervisor
    pool = WorkerPool(settings, dict(os.environ))
    notifier.starting("Loading the model")
    is_ready = False
    try:
        while not stop.draining:
            if not pool.watch():
                return os.EX_CONFIG  # they have printed why
            if is_ready := is_ready or pool.serving > 0:
                notifier.serving(f"{pool.serving} of {len(pool.workers)} workers serve")
            time.sleep(WATCH_SECONDS)
    finally:
        end_children(pool.workers, settings.drain_seconds, stop, meanwhile=notifier.draining)
    return 0
