"""How much of its card an engine uses, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceUse:
    """The use of a card at one moment.

    Attributes:
        allocated_bytes: of tensors of this process.
        reserved_bytes: memory that this process holds, including those.
        total_bytes: memory of the card.
        busy: utilisation by all processes, 0 to 1; None without `nvidia-ml-py`.
    """

    allocated_bytes: int
    reserved_bytes: int
    total_bytes: int
    busy: float | None = None


Meter = Callable[[], DeviceUse]
"""Reads the use of a card, from any thread."""
