"""Credits as the broker keeps them: in whole millionths, as Lua and Redis count in integers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from models.params import GenerateParams

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


@dataclass(frozen=True)
class Price:
    """Of one request, in millionths of a credit.

    The charge is `fixed` and `gpu_second` for each second of the run that made the video, but never
    more than `most`, which is reserved when the request is submitted.

    Attributes:
        fixed: whatever the run takes.
        gpu_second: for each second from a run's start to its end, by the broker's clock.
        most_gpu_seconds: as many of these are charged at most.
    """

    fixed: int = 0
    gpu_second: int = 0
    most_gpu_seconds: int = 0

    @property
    def most(self) -> Decimal:
        """Credits that are reserved."""
        return from_millionths(self.fixed + self.gpu_second * self.most_gpu_seconds)


FREE = Price()


@dataclass(frozen=True)
class Tariff:
    """From what a request asks for to its price, in credits of at most six decimals.

    Attributes:
        base: for each request.
        frame_step: for each denoising step of each frame.
        gpu_second, most_gpu_seconds: see `Price`.
    """

    base: Decimal
    frame_step: Decimal
    gpu_second: Decimal
    most_gpu_seconds: int

    def price(self, params: GenerateParams) -> Price:
        """Of this request."""
        return Price(
            to_millionths(self.base + self.frame_step * params.frames * params.steps),
            to_millionths(self.gpu_second),
            self.most_gpu_seconds,
        )
