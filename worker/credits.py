"""Credits as the broker keeps them: in whole millionths, as Lua and Redis count in integers."""

from __future__ import annotations

from decimal import Decimal

DECIMALS = 6
MILLION = 1_000_000
"""Millionths in a credit."""


def to_millionths(credits: Decimal) -> int:  # noqa: A002 (what they are)
    """The same amount in millionths.

    Raises:
        ValueError: it is no number, or has more than 6 decimals.
    """
    if not credits.is_finite():
        raise ValueError(f"An amount of credits is a number; got {credits}.")
    millionths = credits * MILLION
    if millionths != millionths.to_integral_value():
        raise ValueError(f"Credits have at most {DECIMALS} decimals; got {credits:f}.")
    return int(millionths)


def from_millionths(millionths: int) -> Decimal:
    """The same amount in credits, without needless zeros."""
    return Decimal(millionths) / MILLION
