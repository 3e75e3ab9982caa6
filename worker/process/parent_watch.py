"""Ends a child process when its parent process is gone.

The parent holds the other end of the child's standard input. End of file means that the parent is
dead, even by kill -9, on any POSIX system.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from worker.process.shutdown import DRAIN

PR_SET_PDEATHSIG = 1
"""Of Linux's `sys/prctl.h`."""
WITH_PARENT = "--with-parent"
"""The argument that makes a process watch its parent."""
GRACE_SECONDS = 30.0
INTERVAL_SECONDS = 1.0
"""Between two signals: two at once may arrive as one."""


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. On Linux only.

    No thread of this process takes part: native code may hold Python's lock, or wait for a GPU.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_parent() -> None:
    """When standard input ends, send SIGTERM to this process repeatedly, then SIGKILL.

    Repeatedly, to stop at once: the next owner of the folder may need the GPU.
    """
    for number in (signal.SIGTERM, DRAIN):
        signal.signal(number, signal.SIG_DFL)  # the parent may have started with it ignored
    threading.Thread(target=_wait_for_parent, name="parent-watch", daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(INTERVAL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
