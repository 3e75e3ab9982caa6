"""A key as an account: its name, its credits and its usage."""

from __future__ import annotations

from decimal import Decimal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.listings import AccountBody, AccountCredits, CreditsBody, UsageBody
from server.api.openapi import errors
from server.api.schemas import UNLIMITED
from server.keys.lookup import Scope
from server.transport.parameters import WholeNumber, documented
from server.transport.responses import answer
from worker.store.reports.usage import KEPT_DAYS, Period

DAYS = WholeNumber(
    name="days", description="Up to today, in UTC.", least=1, most=KEPT_DAYS, default=30
)

router = APIRouter(tags=["Account"])


@router.get(
    "/v1/get-user-credits", response_model=CreditsBody, responses=errors(401, 403, 500, 502)
)
async def get_credits(request: Request) -> Response:
    """The balance of the key, less what its running requests may cost.

    Of a key with a monthly cap, what that leaves if it is less.
    """
    call = Call.of(request)
    call.key.require(Scope.READ)
    return answer(CreditsBody(credits=await _spendable(call), free_credits=0.0))


@router.get(
    "/api/auth/authenticate", response_model=AccountBody, responses=errors(401, 403, 500, 502)
)
async def get_account(request: Request) -> Response:
    """Id, name and balance of the key, in the shape of the hosted API."""
    call = Call.of(request)
    key = call.key
    key.require(Scope.READ)
    credits_ = AccountCredits(balance=await _spendable(call))
    return answer(AccountBody(user_id=key.key_id, username=key.name, credits=credits_))


async def _spendable(call: Call) -> float:
    """Credits that the key may spend now; the scripts decide by the same rule."""
    balance = UNLIMITED if call.key.balance is None else call.key.balance
    cap = call.key.monthly_cap
    if cap is None:
        return float(balance)
    charged = await call.services.usage.charged_this_month(call.key.key_id)
    return float(min(balance, max(Decimal(0), cap - charged - call.key.reserved)))


@router.get(
    "/v1/usage",
    response_model=UsageBody,
    responses=errors(400, 401, 403, 500, 502),
    openapi_extra={"parameters": documented(DAYS)},
)
async def get_usage(request: Request) -> Response:
    """The usage of the key on each of the last days; with the scope `admin`, of all keys."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    period = Period.latest(DAYS.read(request), await call.services.usage.today())
    if Scope.ADMIN in call.key.scopes:
        used = await call.services.usage.of_all(period)
    else:
        used = await call.services.usage.of_owner(call.key.key_id, period)
    return answer(UsageBody.model_validate({"usage": used}))
