"""Child processes of `up`, and of `worker` on several cards: restarted, drained and killed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from server.supervisor.watchdog import Watchdog
from server.transport.connection.listener import INHERITED
from worker.process.parent_watch import WITH_PARENT
from worker.process.shutdown import DRAIN, Stop

WATCH_SECONDS = 0.2
"""Between two looks at the processes."""
RESTART_SECONDS = 1.0
"""Back-off before the restart of a process; each death in a row doubles it."""
LONGEST_RESTART_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that ran this long is not crash-looping; its back-off starts over."""
GATEWAY_HANG_SECONDS = 60.0
"""After the last sign of life of the gateway's event loop; as in its unit for systemd."""
STACK_SECONDS = 5.0
"""From the SIGABRT for a process that hangs, which prints its stacks, to the SIGKILL."""
REQUEUE_SECONDS = 5.0
"""From an urgent stop to the kill; a worker requeues its request within one heartbeat."""

_log = structlog.get_logger()


class BackOff:
    """The pauses before the restarts of a process that keeps dying."""

    def __init__(self, first_seconds: float) -> None:
        self._first = self._next = first_seconds
        self._born = time.monotonic()

    def started(self) -> None:
        self._born = time.monotonic()

    def died(self) -> float:
        """Seconds until the restart."""
        if time.monotonic() - self._born > STEADY_SECONDS:
            self._next = self._first
        seconds = self._next
        self._next = min(2 * seconds, LONGEST_RESTART_SECONDS)
        return seconds


class Child:
    """A process that is restarted when it dies, and killed when it hangs for `hang_seconds`.

    One that rejects its settings, or its GPU, is left down. `device` is for the log.
    """

    def __init__(
        self,
        package: str,
        environ: dict[str, str],
        listener: socket.socket | None = None,
        *,
        hang_seconds: float,
        device: str = "",
    ) -> None:
        self.package = package
        self.is_rejecting = False
        self._device = device
        self._hang_seconds = hang_seconds
        self._watchdog = Watchdog(hang_seconds)
        # So that SIGABRT shows the stacks of a process that hangs, as in the units for systemd.
        self._environ = environ | self._watchdog.environ | {"PYTHONFAULTHANDLER": "1"}
        self._listener = listener
        self._process = self._spawn()
        self._back_off = BackOff(RESTART_SECONDS)
        self._restart_at: float | None = None
        self._kill_at: float | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_serving(self) -> bool:
        """Whether it gave a sign of life lately; off Linux, whether it runs."""
        return self._process.poll() is None and self._watchdog.is_heard

    def watch(self) -> bool:
        """Restart it if it has died or hangs. False when it rejects its settings."""
        if self.is_rejecting:
            return False
        status = self._process.poll()
        if status is None:
            if self._watchdog.is_hung():
                self._end_hung()
            return True
        self._close_pipe()
        if status == os.EX_CONFIG:
            self.is_rejecting = True  # it has printed why
            _log.error("process.rejected", **self._log_fields, hint="correct it, and start again")
            return False
        if self._restart_at is None:
            self._restart_at = time.monotonic() + self._note_end(status)
        elif time.monotonic() >= self._restart_at:
            self._restart_at = self._kill_at = None
            self._watchdog.restart()
            self._process = self._spawn()
            self._back_off.started()
        return True

    def _end_hung(self) -> None:
        """Let faulthandler print where it hangs; kill one that does not end of that."""
        if self._kill_at is None:
            _log.error("process.hung", **self._log_fields, silent_seconds=self._hang_seconds)
            if sys.platform == "linux":  # no core of main memory, which holds prompts
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            self._process.send_signal(signal.SIGABRT)
            self._kill_at = time.monotonic() + STACK_SECONDS
        elif time.monotonic() >= self._kill_at:
            self._process.kill()

    def _note_end(self, status: int) -> float:
        """Log the end; returns the seconds until the restart."""
        if status == 0:
            _log.info("process.ended", **self._log_fields)
            return 0.0
        seconds = self._back_off.died()
        _log.error("process.died", **self._log_fields, status=status, again_in=seconds)
        return seconds

    @property
    def _log_fields(self) -> dict[str, str | int]:
        device = {"device": self._device} if self._device else {}
        return {"process": self.package, **device, "pid": self.pid}

    def drain(self) -> None:
        """Ask it to stop, once its requests have ended."""
        if self._process.poll() is None:
            self._process.send_signal(DRAIN)

    def hurry(self) -> None:
        """Ask it to stop at once; it must have been told to drain before."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close_pipe()
        self._watchdog.close()

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", self.package, WITH_PARENT]
        descriptors = [self._listener.fileno()] if self._listener else []
        if descriptors:
            command += [INHERITED, str(descriptors[0])]
        leave_deleted_folder()
        return subprocess.Popen(
            command,
            env=self._environ,
            pass_fds=descriptors,
            stdin=subprocess.PIPE,  # the child stops when it closes: see parent_watch
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which stops them in order
        )


def end_children(
    children: list[Child], drain_seconds: float, stop: Stop, meanwhile: Callable[[], None]
) -> None:
    """Drain them, and kill those that are left after it.

    `meanwhile` is called at once, so that it says that they drain, and then again and again.
    """
    for child in children:
        child.drain()
    meanwhile()
    deadline = time.monotonic() + drain_seconds + REQUEUE_SECONDS
    while not all(child.wait(WATCH_SECONDS) for child in children):
        meanwhile()
        if stop.urgent:
            deadline = min(deadline, time.monotonic() + REQUEUE_SECONDS)
            for child in children:
                child.hurry()
        if time.monotonic() > deadline:
            break
    for child in children:
        if not child.wait(0):
            child.kill()


def leave_deleted_folder() -> None:
    """Torch cannot be loaded while the working directory is one that has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")
