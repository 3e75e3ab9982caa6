"""`?dry_run=true`: the price of a request, and whether and when it would run."""

from __future__ import annotations

import math
import time
from typing import Literal

from pydantic import BaseModel, Field

from server.api.submit.submission import Submission
from server.errors import STATUS
from server.transport.error_body import absent_when_none
from worker.billing import from_millionths
from worker.errors import LimitError, MonthlyCapError, StoreUnverifiedError, TooFewCreditsError
from worker.job import queue_of
from worker.pace import Work
from worker.store.submits import Outlook

REFUSALS = (LimitError, MonthlyCapError, StoreUnverifiedError, TooFewCreditsError)


class PriceBody(BaseModel):
    """Credits of all requests: `fixed`, plus `gpu_second` for each second of their runs."""

    fixed: float
    gpu_second: float
    most: float = Field(description="The highest charge; this much is reserved at the submit.")


class RefusalBody(BaseModel):
    """The error that the same request without `dry_run` would get."""

    status: int
    error: str
    retry_after: int | None = absent_when_none("Seconds.")


class DryRunBody(BaseModel):
    """What would happen to a request. Nothing was queued or counted."""

    dry_run: Literal[True] = True
    would_be_accepted: bool
    refusal: RefusalBody | None = absent_when_none("Why it would not be accepted now.")
    price: PriceBody
    warnings: list[str] | None = absent_when_none("Of names that were ignored.")
    cached: int | None = absent_when_none(
        "How many requests the result cache would complete at once, for its share of the price."
    )
    queue_position: int | None = absent_when_none(
        "The position that it, or the first of several, would have; 1 is next."
    )
    estimated_wait_seconds: float | None = Field(
        default=None, description="Time in the queue; null while nothing was measured."
    )
    estimated_seconds: float | None = Field(
        default=None, description="Time of each run; null while nothing was measured."
    )


async def dry_run(submission: Submission) -> DryRunBody:
    """Ask the broker whether it would accept a submit. Needs no worker.

    Raises:
        InvalidParametersError: no live worker has the LoRAs that it names.
        KeyEndedError: the key was revoked or has expired meanwhile.
        BrokerUnavailableError: the broker does not answer.
    """
    services = submission.call.services
    price, warnings = _price_body(submission), submission.hints or None
    try:
        if refusal := await submission.refusal():
            raise refusal
        params = submission.params
        outlook = await services.store.try_out(
            submission.call.key.key_id,
            price=submission.price,
            model=params.model,
            loras=params.lora or (),
            count=submission.plan.requests,
            cache_keys=submission.cache_keys,
        )
    except REFUSALS as error:
        seconds = math.ceil(error.retry_seconds) if isinstance(error, LimitError) else None
        body = RefusalBody(status=STATUS[type(error)], error=str(error), retry_after=seconds)
        return DryRunBody(would_be_accepted=False, refusal=body, price=price, warnings=warnings)
    forecast = await services.forecaster.now(queue_of(params))
    work = Work.of(params, submission.steps)
    price = _price_body(submission, outlook)
    if outlook.cached == submission.plan.requests:
        return DryRunBody(
            would_be_accepted=True,
            price=price,
            warnings=warnings,
            cached=outlook.cached,
            estimated_wait_seconds=0,
            estimated_seconds=0,
        )
    wait = forecast.start_seconds_at(outlook.position, time.monotonic())
    return DryRunBody(
        would_be_accepted=True,
        price=price,
        warnings=warnings,
        cached=outlook.cached or None,
        queue_position=outlook.position,
        estimated_wait_seconds=_rounded(wait),
        estimated_seconds=_rounded(forecast.run_seconds(work)),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _price_body(submission: Submission, outlook: Outlook | None = None) -> PriceBody:
    """What the result cache has costs a share that is known; without an outlook, all would run."""
    price, runs = submission.price, submission.plan.requests - (outlook.cached if outlook else 0)
    shares = outlook.most - runs * price.most if outlook else 0
    return PriceBody(
        fixed=float(runs * from_millionths(price.fixed) + shares),
        gpu_second=float(from_millionths(price.gpu_second)) if runs else 0,
        most=float(runs * price.most + shares),
    )
