"""Starts, watches and ends the processes that share each video with this worker, on other GPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile

import structlog

from models.group import Leader, Link
from models.settings import EngineSettings
from worker.process.logs import end_at_once, say

END_SECONDS = 5.0
"""From the end of its link until a follower is killed."""
KILL_SECONDS = 1.0
"""How long a killed follower may take: one whose GPU is gone can stay in the driver for ever."""

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
    # The default launcher of compiled kernels keeps Python's lock while it waits for a full queue,
    # such as that of a card whose peer has died. Then no thread could notice the death.
    os.environ.setdefault("TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER", "0")
    with TemporaryFile() as file:  # without a name: a killed process leaves none
        size = settings.gpus_per_video
        followers = [_Follower(rank, size, file.fileno()) for rank in range(1, size)]
        leader = Leader(
            _path(file.fileno()),
            [follower.link for follower in followers],
            on_death=lambda rank: followers[rank - 1].end_worker(),
            on_full=refuse_gpu,
        )
        try:
            yield leader
        finally:
            leader.close()
            deadline = time.monotonic() + END_SECONDS
            for follower in followers:
                follower.end(deadline)


def refuse_gpu(rank: int) -> None:
    """End this process as a GPU is too small for the warm-up: another start does not help."""
    say(
        f"GPU {rank} of the group, counted from 0, has too little memory for the engine. End other "
        "processes on it (nvidia-smi), or choose a smaller profile with MOCHI_PROFILE."
    )
    end_at_once(os.EX_CONFIG)


def end_full(rank: int, fail: Callable[[], None]) -> None:
    """Call `fail` for the running request, then end this process. A supervisor starts a new one."""
    _log.error("rank.out_of_memory", rank=rank)
    try:
        fail()
    except Exception:  # noqa: BLE001 (the lease ends, and the request runs again)
        _log.exception("run.unfinished")
    end_at_once(os.EX_TEMPFAIL)


def _path(number: int) -> Path:
    """Of an open file, for this process and those that inherit it."""
    return Path(f"/proc/self/fd/{number}")


class _Follower:
    """Started by the main thread, with whose end the kernel ends it."""

    def __init__(self, rank: int, size: int, file: int) -> None:
        ours, theirs = socket.socketpair()
        self._rank = rank
        self.link: Link = Connection(ours.detach())
        command = [sys.executable, "-P", "-m", "worker.runtime.follower"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(rank), str(size), str(_path(file)), str(theirs.fileno())],
                pass_fds=[file, theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def end_worker(self) -> None:
        """End this process as its follower has ended."""
        status = self.end(time.monotonic() + END_SECONDS)
        _log.error("rank.died", rank=self._rank, status=status)
        # With its status, so that settings which a follower rejects are not tried again.
        end_at_once(os.EX_CONFIG if status == os.EX_CONFIG else os.EX_TEMPFAIL)

    def end(self, deadline: float) -> int:
        """Wait for the end, and kill the process at the deadline. Returns its status."""
        try:
            return self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            return self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
