"""How much of its card an engine uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceUse:
    """One moment.

    Attributes:
        allocated_bytes: of its memory that tensors of this process have.
        reserved_bytes: that this process keeps from others, those included.
        total_bytes: all that the card has.
        busy: share of the last moments in which it worked for anybody, 0 to 1; None where the
            driver's library for Python (`nvidia-ml-py`) is not installed.
    """

    allocated_bytes: int
    reserved_bytes: int
    total_bytes: int
    busy: float | None = None


Meter = Callable[[], DeviceUse]
"""Reads a card, from any thread."""
