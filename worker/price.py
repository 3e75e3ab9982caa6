"""What a request costs: fixed when it is submitted, but for the seconds that it will have a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from models.params import GenerateParams
from worker.credits import from_millionths, to_millionths


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
