"""What a key has left, and what was used."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.openapi import DAYS, errors
from server.api.schemas import CreditsBody, UsageBody, credits_body, usage_row
from server.errors import BadQueryError
from server.keys.lookup import Scope
from server.transport.responses import answer
from worker.store.usage import KEPT_DAYS, Period

router = APIRouter(tags=["Account"])


@router.get(
    "/v1/get-user-credits", response_model=CreditsBody, responses=errors(401, 403, 500, 502)
)
async def credit_balance(request: Request) -> Response:
    """The balance of the key, without what its running requests may cost."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    return answer(credits_body(call.key.balance))


@router.get(
    "/v1/usage",
    response_model=UsageBody,
    responses=errors(400, 401, 403, 500, 502),
    openapi_extra={"parameters": [DAYS]},
)
async def usage(request: Request) -> Response:
    """What the key used on each of the last days; with the scope `admin`, what every key did."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    period = Period.latest(_days(request), datetime.now(UTC).date())
    if Scope.ADMIN in call.key.scopes:
        used = await call.services.usage_of_all(period)
    else:
        used = await call.services.usage(period, call.key.key_id)
    return answer(UsageBody(usage=[usage_row(usage) for usage in used]))


def _days(request: Request) -> int:
    given = request.query_params.get("days", "30")
    if not re.fullmatch(r"[0-9]{1,3}", given) or not 1 <= int(given) <= KEPT_DAYS:
        raise BadQueryError(f"`days` must be a whole number from 1 to {KEPT_DAYS}.")
    return int(given)
