"""Whether this process must stop, and how urgently."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType

TOGETHER_SECONDS = 1.0
"""Signals within this time of the first count once: `uv run` and `make` repeat a Ctrl-C."""
DRAIN = signal.SIGUSR1
"""From `up` to its children. It never counts as a second signal: systemd and pm2 send SIGTERM to
every process of `up`, which may tell its children much later."""

CANCEL_SECONDS = 0.1
"""Until a task that has not ended is cancelled again."""


def on_signals(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> None:
    """Handle these signals, except those ignored at the start, as `nohup` and `&` make them."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@dataclass
class Stop:
    """Plain flags: a signal handler that set an Event could wait for its own thread's lock.

    Attributes:
        grace_seconds: from the first signal until it becomes urgent.
        draining: finish the running request, take no other. Set alone, as by a drain order, it
            gives the request as long as it needs.
    """

    grace_seconds: float = math.inf
    draining: bool = False
    _asked_at: float = math.inf
    _urgent_from: float = math.inf

    @property
    def urgent(self) -> bool:
        """Requeue the running request."""
        return time.monotonic() >= self._urgent_from

    def ask(self, number: int = signal.SIGTERM) -> None:
        """A signal: the first drains, urgent after the grace; a later one is urgent at once."""
        if number == DRAIN and self._asked_at < math.inf:
            return
        now = time.monotonic()
        self._asked_at = min(self._asked_at, now)
        is_first = now < self._asked_at + TOGETHER_SECONDS
        self._urgent_from = self._asked_at + self.grace_seconds if is_first else now
        self.draining = True


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended, and given their connections to the broker back.

    redis-py writes with `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that
    comes as the write ends (https://github.com/python/cpython/issues/86296).
    """
    left = {*tasks}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)
