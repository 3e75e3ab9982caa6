"""Everything that can go wrong in the job system."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from models.errors import MochiError


@dataclass(frozen=True)
class Rate:
    """How many requests a key may submit within a minute.

    Attributes:
        limit: in any minute.
        remaining: at once.
        reset_seconds: until one more may be submitted than now.
    """

    limit: int
    remaining: int
    reset_seconds: float


class JobError(MochiError):
    """Base of the job system's errors."""


class BrokerUnavailableError(JobError):
    """Redis or Valkey does not answer, or refuses to write."""

    @property
    def reason(self) -> str:
        """What the client library says: for the log and for operators, not for HTTP clients."""
        cause = self.__cause__
        return str(cause) or type(cause).__name__ if cause else str(self)

    @property
    def advice(self) -> str:
        """For who has set up the broker."""
        return f"{self} Does it run, and is MOCHI_REDIS_URL right? ({self.reason})"


class BrokerStartError(JobError):
    """The embedded broker cannot be started."""


class NoWorkerError(JobError):
    """No live worker has the model loaded."""


class LimitError(JobError):
    """For now no more is accepted.

    Attributes:
        retry_seconds: after which to ask again.
    """

    retry_seconds = 30.0
    """About the shortest time in which a GPU makes a video."""


class QueueFullError(LimitError):
    """As many requests wait as may wait."""


class TooManyJobsError(LimitError):
    """As many requests of the key wait or run as may."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"This API key may have {most} {'request' if most == 1 else 'requests'} at once, and "
            "has: wait for one to end, or cancel one."
        )


class TooFastError(LimitError):
    """The key has submitted as many requests within a minute as it may."""

    def __init__(self, rate: Rate) -> None:
        super().__init__(
            f"This API key may submit {rate.limit} {'request' if rate.limit == 1 else 'requests'} "
            f"a minute, and has: ask again in {math.ceil(rate.reset_seconds)} seconds."
        )
        self.rate = rate
        self.retry_seconds = rate.reset_seconds


class TooFewCreditsError(JobError):
    """The balance does not cover what the request may cost."""

    def __init__(self, balance: Decimal, price: Decimal, reserved: Decimal) -> None:
        held = f" ({reserved:f} more are reserved for requests that wait or run)"
        super().__init__(
            f"Insufficient credits: the request costs up to {price:f}, and the balance is "
            f"{balance:f}{held if reserved else ''}. Ask who runs this server for more."
        )


class KeyEndedError(JobError):
    """The API key was revoked or has expired, while its request was on the way."""

    def __init__(self) -> None:
        super().__init__("This API key was revoked, or has expired, a moment ago.")


class RequestNotFoundError(JobError):
    """No such request: never made, expired, or made with another key."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request {request_id} not found")


class IdempotencyConflictError(JobError):
    """The idempotency key belongs to a request with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"This Idempotency-Key made request {request_id}, with another body. Send the same to "
            "get that one, or another key to make a new one."
        )


class UnknownAnswerError(Exception):
    """A Lua script answered what this version does not know: a bug, which HTTP turns into 500."""

    def __init__(self, script: str, answer: object) -> None:
        super().__init__(
            f"The script {script} gave an answer that this version does not know: {answer!r}."
        )


class StorageError(JobError):
    """A video could not be kept, or not be read again."""


class TracingUnusableError(JobError):
    """Traces cannot be sent as the variables say; the text names the one and the remedy."""


class OutputsUnusableError(JobError):
    """Videos cannot be kept where the settings say; to try again does not help."""
