"""Entry point of a process that shares each video with a worker; see `followers.py`.

It ends when the worker ends. Signals to all processes of a terminal or service do not end it: the
worker finishes its request first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import structlog

from models.build import build_and_follow
from models.errors import EngineUnavailableError
from models.group import Follower, Member
from worker.process.logs import configure_logs, end_at_once, say
from worker.process.parent_watch import die_with_parent
from worker.process.shutdown import DRAIN
from worker.settings import WorkerSettings

PEER_SECONDS = 2.0
"""How long rank 0 has to end this process, where another rank's end has failed an exchange."""

_log = structlog.get_logger()


def main(arguments: list[str]) -> NoReturn:
    """Never returns: destructors of a group may wait for a broken card without end."""
    rank, size, rendezvous, link = arguments
    die_with_parent()  # if it is dead already, the link tells
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, DRAIN):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(rank=rank)
    settings = WorkerSettings()
    follower = Follower(
        Member(int(rank), int(size), Path(rendezvous)),
        Connection(int(link)),
        on_death=lambda: os._exit(0),  # at once, though this process may wait for its card
    )
    try:
        build_and_follow(settings, settings.data_dir, follower)
    except EngineUnavailableError as error:
        say(str(error), "error")
        end_at_once(os.EX_CONFIG)
    except Exception as error:  # noqa: BLE001 (of any library)
        time.sleep(PEER_SECONDS)
        _log.exception("rank.failed", reason=str(error))
        end_at_once(os.EX_TEMPFAIL)


if __name__ == "__main__":
    main(sys.argv[1:])
