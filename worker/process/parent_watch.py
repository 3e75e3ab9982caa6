"""Ends a child process when the parent that started it is gone, however it went.

The parent holds the other end of the child's standard input. Its end of file says that the parent
is dead, kill -9 included, on any POSIX system.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

WITH_PARENT = "--with-parent"
"""The argument that asks a process for this."""
GRACE_SECONDS = 30.0
INTERVAL_SECONDS = 1.0
"""Between two signals: two at once may arrive as one."""


def hold_on_to_parent() -> None:
    """From now on, SIGTERM to ourselves when standard input ends, and SIGKILL a while later.

    SIGTERM more than once: nobody waits for what runs, and the next owner may need the GPU.
    """
    threading.Thread(target=_wait_for_end, name="lifeline", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(INTERVAL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
