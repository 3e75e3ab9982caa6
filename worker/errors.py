"""Errors of the job system."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from models.errors import InvalidParametersError, MochiError
from models.request.params import MODEL


@dataclass(frozen=True)
class Rate:
    """State of an API key's rate limit.

    Attributes:
        limit: requests in any minute.
        remaining: requests that may be submitted now.
        reset_seconds: until one more may be submitted.
    """

    limit: int
    remaining: int
    reset_seconds: float


class JobError(MochiError):
    """Base of the job system's errors."""


class BrokerUnavailableError(JobError):
    """Redis or Valkey does not answer, or refuses to write.

    Attributes:
        is_refusal: it has answered, and would refuse the same call again; another one may work.
    """

    def __init__(self, text: str, *, is_refusal: bool = False) -> None:
        super().__init__(text)
        self.is_refusal = is_refusal

    @property
    def has_answered(self) -> bool:
        """Whether the broker has, and the answer is a refusal."""
        return self.is_refusal

    @property
    def reason(self) -> str:
        """The client library's message, for logs and operators, not for HTTP clients."""
        cause = self.__cause__
        return str(cause) or type(cause).__name__ if cause else str(self)

    @property
    def advice(self) -> str:
        """The message for operators."""
        return f"{self} Check that it runs and that MOCHI_REDIS_URL is right. ({self.reason})"


class BrokerUnfitError(BrokerUnavailableError):
    """The broker answers, and cannot be used as it is; the message has the remedy."""

    has_answered = True

    @property
    def reason(self) -> str:
        return self.advice

    @property
    def advice(self) -> str:
        return f"{self} ({super().reason})"


class SchemaError(BrokerUnfitError):
    """Another release has written the data; the message names both schemas and the remedy."""

    @property
    def advice(self) -> str:
        return str(self)


class BrokerStartError(JobError):
    """The embedded broker cannot be started."""


class NoWorkerError(JobError):
    """No live worker has the model loaded."""

    def __init__(self, model: str, loras: str = "") -> None:
        which = "" if model == MODEL else f" for `{model}`"
        which += f" with the LoRAs {loras}" if loras else ""
        super().__init__(
            f"No live worker takes requests{which}: /readyz says why. Requests to /v2 wait for one."
        )


def _requests(number: int) -> str:
    return f"{number} {'request' if number == 1 else 'requests'}"


def count_too_large(count: int, most: int, limit: str) -> InvalidParametersError:
    """The refusal of more requests at once than any wait could make room for."""
    text = f"`count` {count} is more than the {_requests(most)} that {limit}. Ask for fewer."
    return InvalidParametersError.of({"count": text})


def _cost(count: int) -> str:
    return "the request costs" if count == 1 else f"the {count} requests cost"


class LimitError(JobError):
    """The submit exceeds a limit; a later one may succeed. `count`: requests that it asked for."""

    retry_seconds = 30.0
    """After which to retry; about the shortest time in which a GPU makes a video."""

    def __init__(self, text: str, count: int = 1) -> None:
        several = f" All {count} requests of your `count` need room at once: a lower one may fit."
        super().__init__(text + (several if count > 1 else ""))


class QueueFullError(LimitError):
    """The queue holds as many requests as it may."""

    def __init__(self, most_waiting: int, count: int = 1) -> None:
        super().__init__(
            f"The queue is full: {most_waiting} requests wait already."
            if count == 1
            else f"The queue is full: it holds {most_waiting} requests.",
            count,
        )


class TooManyJobsError(LimitError):
    """The key has reached its limit of requests that wait or run."""

    def __init__(self, most: int, count: int = 1) -> None:
        super().__init__(
            f"This API key may have {_requests(most)} at once, and has reached that limit. "
            "Wait for one to end, or cancel one.",
            count,
        )


class TooFastError(LimitError):
    """The key has reached its limit of requests a minute."""

    def __init__(self, rate: Rate, count: int = 1) -> None:
        super().__init__(
            f"This API key may submit {_requests(rate.limit)} a minute, and has reached that "
            f"limit. Retry in {math.ceil(rate.reset_seconds)} seconds.",
            count,
        )
        self.rate = rate
        self.retry_seconds = rate.reset_seconds


class TooFewCreditsError(JobError):
    """The balance does not cover the highest price of the request, or of `count` together."""

    def __init__(
        self, balance: Decimal, price: Decimal, reserved: Decimal, *, count: int = 1
    ) -> None:
        held = f" ({reserved:f} more are reserved for requests that wait or run)"
        super().__init__(
            f"Insufficient credits: {_cost(count)} up to {price:f}, and the balance is "
            f"{balance:f}{held if reserved else ''}. Ask your operator for more."
        )


class MonthlyCapError(JobError):
    """The request could take the key's charges of this month above its cap.

    Args:
        ends_at: the end of the month, in ms since 1970 by the broker's clock.
        cap: the key's `monthly_cap` in credits, as all amounts.
        price: the most that the request, or `count` together, can cost.
        charged: since the month began.
        reserved: for requests that wait or run.
    """

    def __init__(
        self,
        ends_at: int,
        cap: Decimal,
        price: Decimal,
        charged: Decimal,
        reserved: Decimal,
        *,
        count: int = 1,
    ) -> None:
        held = f", and {reserved:f} are reserved for requests that wait or run"
        end = datetime.fromtimestamp(ends_at / 1000, UTC)
        why = (
            f"more than the whole `monthly_cap` of this API key, {cap:f}. Ask for less"
            if price > cap
            else f"and the `monthly_cap` of this API key is {cap:f}, of which {charged:f} are spent"
            f"{held if reserved else ''}. The month ends at {end:%Y-%m-%dT%H:%M:%SZ}; wait for it"
        )
        super().__init__(
            f"Insufficient credits this month: {_cost(count)} up to {price:f}, {why}, or ask your "
            "operator for a higher cap."
        )


class KeyEndedError(JobError):
    """The API key was revoked or expired while its submit was under way."""

    def __init__(self) -> None:
        super().__init__("This API key was revoked or expired while the request was being sent.")


class RequestNotFoundError(JobError):
    """The request does not exist, has expired, or belongs to another key."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request {request_id} not found")


class StoreUnverifiedError(JobError):
    """A gateway cannot tell whether it reads the store that workers write videos to."""

    def __init__(
        self, text: str = "The store of videos does not answer. The gateway's log says why."
    ) -> None:
        super().__init__(text)


class OtherStoreError(StoreUnverifiedError):
    """A live worker writes its videos where gateways do not read them. The log names it."""

    def __init__(self) -> None:
        super().__init__(
            "A worker writes its videos to a store that the gateway does not read. Give all "
            "gateways and workers the same MOCHI_OUTPUTS, or a MOCHI_DATA_DIR on a shared folder, "
            "and restart them."
        )


class IdempotencyConflictError(JobError):
    """The idempotency key belongs to a request with another body or model."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"This Idempotency-Key made request {request_id}, with another body or model. "
            "Send the same to get that request, or another key to make a new one."
        )


class FinishConflictError(JobError):
    """The draft has a finish, and this one asks for another webhook."""

    def __init__(self, finish_id: str) -> None:
        super().__init__(
            f"Request {finish_id} finishes this draft already, with another `webhook_url` or none. "
            "Leave `webhook_url` out to get that request; or cancel or delete it, and finish the "
            "draft again."
        )


class UnknownAnswerError(Exception):
    """A Lua script answered what this version does not know: a bug, which HTTP turns into 500."""

    def __init__(self, script: str, answer: object) -> None:
        super().__init__(
            f"The script {script} gave an answer that this version does not know: {answer!r}."
        )


class StorageError(JobError):
    """The output store cannot write or read."""


class DiskFullError(StorageError):
    """The disk has too little room for a run. Only the log names its folder."""

    def __init__(self, folder: Path, free_mib: int, min_free_mib: int) -> None:
        super().__init__(
            f"The disk of MOCHI_DATA_DIR has {free_mib} MiB free, and MOCHI_MIN_FREE_MIB asks for "
            f"{min_free_mib}: make room."
        )
        self.folder = folder


class VideoGoneError(StorageError):
    """The output store answers, and does not have the video."""

    def __init__(self) -> None:
        super().__init__("The video is gone")


class TracingUnusableError(JobError):
    """An OpenTelemetry variable cannot be used; the message names it and the remedy."""


class ProvenanceUnusableError(JobError):
    """Videos cannot be marked with these settings; the message has the remedy."""


class OutputsUnusableError(JobError):
    """The output store cannot be used with these settings; a retry does not help."""
