"""Entry point of a process that shares each video with a worker; see `followers.py`.

It ends when the worker ends. Signals to all processes of a terminal or service do not end it: the
worker finishes its request first.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from models.build import build_and_follow
from models.errors import EngineUnavailableError
from models.group import Follower, Member
from worker.process.logs import configure_logs, say
from worker.process.shutdown import DRAIN
from worker.settings import WorkerSettings

_log = structlog.get_logger()


def main(arguments: list[str]) -> int:
    rank, size, meeting, link = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, DRAIN):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(rank=rank)
    settings = WorkerSettings()
    follower = Follower(
        Member(int(rank), int(size), Path(meeting)),
        Connection(int(link)),
        on_death=lambda: _end(Path(meeting).parent),
    )
    try:
        build_and_follow(settings, settings.data_dir, follower)
    except EngineUnavailableError as error:
        say(str(error))
        return os.EX_CONFIG
    except Exception as error:  # noqa: BLE001 (of any library)
        _log.exception("rank.failed", reason=str(error))
        return os.EX_TEMPFAIL


def _end(folder: Path) -> None:
    """End at once, though this process may wait for its card; a killed worker removes nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
