"""Prices and credits. The broker keeps whole millionths, as Lua and Redis count in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from models.request.params import GenerateParams

DECIMALS = 6
MILLION = 1_000_000
"""Millionths in a credit."""
_MILLIONTH = Decimal(1).scaleb(-DECIMALS)


def to_millionths(credits: Decimal) -> int:  # noqa: A002 (what they are)
    """Raises ValueError for infinities, NaN, and more than 6 decimals."""
    if not credits.is_finite():
        raise ValueError(f"An amount of credits must be a number; got {credits}.")
    millionths = credits * MILLION
    if millionths != millionths.to_integral_value():
        raise ValueError(f"Credits have at most {DECIMALS} decimals; got {credits:f}.")
    return int(millionths)


def from_millionths(millionths: int) -> Decimal:
    return Decimal(millionths) / MILLION


@dataclass(frozen=True)
class Price:
    """Price of one request, in millionths of a credit.

    The charge is `fixed` plus `gpu_second` for each second of the completed run, at most `most`,
    which is reserved at the submit. Where the result cache has the video, it is a share of what
    the run that made it would cost.

    Attributes:
        fixed: independent of the run's length.
        gpu_second: for each second of the run, by the broker's clock.
        most_gpu_seconds: seconds charged at most.
        cached_share: for a video of the result cache, 0 to 1.
    """

    fixed: int = 0
    gpu_second: int = 0
    most_gpu_seconds: int = 0
    cached_share: Decimal = Decimal(0)

    @property
    def most(self) -> Decimal:
        """Highest charge, in credits."""
        return from_millionths(self.fixed + self.gpu_second * self.most_gpu_seconds)


FREE = Price()


@dataclass(frozen=True)
class Tariff:
    """Computes prices. In credits of at most six decimals.

    Attributes:
        base: for each request.
        frame_step: for each denoising step of each frame.
        gpu_second, most_gpu_seconds: see `Price`.
        factors: by which the prices of a model are multiplied, by its slug; 1 if it has none.
        cached_share: see `Price`.
    """

    base: Decimal
    frame_step: Decimal
    gpu_second: Decimal
    most_gpu_seconds: int
    factors: Mapping[str, Decimal] = field(default_factory=dict)
    cached_share: Decimal = Decimal(0)

    def price(self, params: GenerateParams, steps: int | None = None) -> Price:
        """Rounded to a millionth of a credit. `steps`: those that are run, if not all."""
        fixed = self.base + self.frame_step * params.frames * (steps or params.steps)
        gpu_second = self.gpu_second
        factor = self.factors.get(params.model)
        if factor is not None:
            fixed = (factor * fixed).quantize(_MILLIONTH)
            gpu_second = (factor * gpu_second).quantize(_MILLIONTH)
        return Price(
            to_millionths(fixed),
            to_millionths(gpu_second),
            self.most_gpu_seconds,
            self.cached_share,
        )
