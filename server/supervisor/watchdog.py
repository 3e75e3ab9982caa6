"""Notices a child process that hangs, by the signs of life that it would send to systemd.

On Linux alone: the address of the socket is one that the kernel gives, and leaves no file behind.
"""

from __future__ import annotations

import socket
import sys
import time

from worker.process.systemd import BEAT_SECONDS

LONGEST_LOOK_SECONDS = 5.0
"""Between two looks. After a longer one this process stood still itself, and the child may have."""

RECENT_SECONDS = 3 * BEAT_SECONDS
"""A process that gave a sign of life within this time is serving."""


class Watchdog:
    """Of one child, from its first sign of life on: loading a model takes as long as it takes."""

    def __init__(self, seconds: float) -> None:
        """Make one that counts a child as hung after `seconds` without a sign."""
        self._seconds = seconds
        self._heard_at: float | None = None
        self._looked_at = time.monotonic()
        self._socket: socket.socket | None = None
        if sys.platform == "linux":
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.bind("")

    @property
    def environ(self) -> dict[str, str]:
        """The variables of sd_notify(3), for `Notifier.take`."""
        if self._socket is None:
            return {}
        address = self._socket.getsockname().decode().replace("\0", "@", 1)
        return {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": f"{self._seconds * 1e6:.0f}"}

    def restart(self) -> None:
        """Forget the signs of a process that has ended."""
        self._take_signs()
        self._heard_at = None

    def is_hung(self) -> bool:
        now = time.monotonic()
        is_excused = self._heard_at is not None and now - self._looked_at > LONGEST_LOOK_SECONDS
        if self._take_signs() or is_excused:
            self._heard_at = now
        self._looked_at = now
        return self._heard_at is not None and now - self._heard_at > self._seconds

    @property
    def is_heard(self) -> bool:
        """Whether the last sign of life, as of the last look, is not long ago."""
        if self._socket is None:
            return True
        return self._heard_at is not None and self._looked_at - self._heard_at < RECENT_SECONDS

    def _take_signs(self) -> bool:
        """Whether there were signs of life since the last call."""
        is_alive = False
        while self._socket is not None:
            try:
                is_alive |= b"WATCHDOG=1" in self._socket.recv(4096)
            except BlockingIOError:
                break
        return is_alive

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
