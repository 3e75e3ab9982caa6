"""How urgently this process must stop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stop:
    """Written by a signal handler, so plain flags: an Event's lock could be held by whom it stops.

    Attributes:
        soon: finish the running request, take no other.
        now: give the running request back.
    """

    soon: bool = False
    now: bool = False

    def ask(self) -> None:
        """Once: soon. Again: now."""
        self.now = self.soon
        self.soon = True
