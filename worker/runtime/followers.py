"""Starts, watches and ends the processes that share each video with this worker, on other GPUs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from models.group import Leader, Link
from models.settings import EngineSettings
from worker.process.logs import drain_logs

END_SECONDS = 5.0
"""From the end of its link until a follower is killed."""

_log = structlog.get_logger()


@contextmanager
def leading(settings: EngineSettings) -> Iterator[Leader | None]:
    """The group of `settings`, with its followers until the block ends; None for a single card.

    A follower that ends before ends this process, too, as if it had died: the request runs again
    when its lease ends, and a supervisor starts a new group.
    """
    if not settings.is_group:
        yield None
        return
    with TemporaryDirectory(prefix="mochi-group-") as folder:
        meeting = Path(folder) / "meeting"
        size = settings.gpus_per_video
        followers = [_Follower(rank, size, meeting) for rank in range(1, size)]
        leader = Leader(
            meeting,
            [follower.link for follower in followers],
            on_death=lambda rank: followers[rank - 1].take_worker_along(),
        )
        try:
            yield leader
        finally:
            leader.close()
            for follower in followers:
                follower.end()


class _Follower:
    def __init__(self, rank: int, size: int, meeting: Path) -> None:
        ours, theirs = socket.socketpair()
        self._rank = rank
        self._folder = meeting.parent
        self.link: Link = Connection(ours.detach())
        command = [sys.executable, "-P", "-m", "worker.runtime.follower"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(rank), str(size), str(meeting), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def take_worker_along(self) -> None:
        status = self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        # With its status, so that settings which a follower rejects are not tried again.
        _log.error("rank.died", rank=self._rank, status=status)
        drain_logs()
        os._exit(os.EX_CONFIG if status == os.EX_CONFIG else os.EX_TEMPFAIL)

    def end(self) -> None:
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
