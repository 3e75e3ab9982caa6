"""What systemd is told: readiness, status and signs of life, and the priority of a line of log.

Its protocols, sd_notify(3) and sd-daemon(3), are a datagram and a prefix. Outside systemd, nothing
is sent.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import MutableMapping

BEAT_SECONDS = 10.0
"""Between two signs of life at most, so that a hang is noticed soon after its limit."""
STDERR = 2
_PRIORITIES = {"critical": "<2>", "error": "<3>", "warning": "<4>"}
"""Of syslog(3); journald takes a line without a prefix as information."""


class Notifier:
    """Tells the service manager of this process how it is.

    Args:
        address: the socket of the service manager; empty: there is none.
        beat_seconds: between two signs of life; infinite where none is expected.
    """

    def __init__(self, address: str = "", beat_seconds: float = math.inf) -> None:
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._beat_seconds = beat_seconds
        self._status = ""
        self._next_beat = -math.inf

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Take systemd's variables out of `environ`: a child must not speak for its parent."""
        address = environ.pop("NOTIFY_SOCKET", "")
        limit = environ.pop("WATCHDOG_USEC", "")
        is_watched = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # At most half of the limit, as sd_watchdog_enabled(3) recommends.
        if not (limit and is_watched):
            return cls(address)
        return cls(address, min(int(limit) / 2e6, BEAT_SECONDS))

    def starting(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def serving(self, status: str) -> None:
        """Ready, and alive. Call it from the loop whose hang is to be noticed."""
        now = time.monotonic()
        is_due = status != self._status or now >= self._next_beat
        if is_due and self._send(f"READY=1\nWATCHDOG=1\nSTATUS={status}"):
            self._status = status
            self._next_beat = now + self._beat_seconds

    def draining(self) -> None:
        """Alive until the end; never ready, if it was not ready before."""
        if self._status:
            self.serving("Draining")

    def stopping(self) -> None:
        """The work has ended. Not before: from now, systemd kills after `TimeoutStopSec`."""
        self._send("STOPPING=1\nSTATUS=Stopping")

    def _send(self, text: str) -> bool:
        """Whether it was sent; a service manager that does not read must not block this process."""
        if not self._address:
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # noqa: FBT003 (positional only)
            try:
                sender.sendto(text.encode(), self._address)
            except OSError:
                return False
        return True


def journal_prefix(level: str) -> str:
    """The priority of a line, if standard error is the journal; otherwise nothing."""
    stream = os.fstat(STDERR)
    if os.environ.get("JOURNAL_STREAM") != f"{stream.st_dev}:{stream.st_ino}":
        return ""
    return _PRIORITIES.get(level, "")
