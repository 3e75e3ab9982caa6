"""`mochi-server worker --workers N`: a worker on each card, restarted when it dies."""

from __future__ import annotations

import os
import signal
import time

from server.settings import ServerSettings
from server.supervisor.children import WATCH_SECONDS, end_children, worker_children
from worker.process.logs import configure_logs
from worker.process.shutdown import Stop, on_signals
from worker.process.systemd import Notifier


def run_workers(settings: ServerSettings) -> int:
    """Run the workers until a signal arrives, or one rejects its settings.

    Returns:
        The exit status.
    """
    configure_logs()
    stop = Stop()
    on_signals(lambda *_: stop.ask(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    notifier = Notifier.take(os.environ)  # a child's own is that of its supervisor
    workers = worker_children(settings, dict(os.environ))
    try:
        while not stop.draining:
            notifier.serving("The workers run")
            if not all(worker.watch() for worker in workers):
                return os.EX_CONFIG  # it has printed why
            time.sleep(WATCH_SECONDS)
    finally:
        end_children(workers, settings.drain_seconds, stop, meanwhile=notifier.draining)
    return 0
