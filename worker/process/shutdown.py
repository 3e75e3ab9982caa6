"""How urgently this process must stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass
class Stop:
    """Written by a signal handler, so plain flags: an Event's lock could be held by whom it stops.

    Attributes:
        grace_seconds: from the first signal until it becomes urgent by itself.
        draining: finish the running request, take no other.
    """

    grace_seconds: float = math.inf
    draining: bool = False
    _was_asked: bool = False
    _now_from: float = math.inf

    @property
    def urgent(self) -> bool:
        """Give the running request back."""
        return time.monotonic() >= self._now_from

    def ask(self) -> None:
        """A signal. The first: soon, and now after the grace. The second: now."""
        self._now_from = time.monotonic() + (0 if self._was_asked else self.grace_seconds)
        self._was_asked = self.draining = True

    def drain(self) -> None:
        """Soon, however long the running request may take."""
        self.draining = True
