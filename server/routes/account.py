"""What a key has left."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.answers import answer
from server.documents import errors
from server.keyring import Scope
from server.schemas import UNMETERED_CREDITS, CreditsBody
from server.services import Call

router = APIRouter(tags=["Account"])


@router.get(
    "/v1/get-user-credits", response_model=CreditsBody, responses=errors(401, 403, 500, 502)
)
async def credit_balance(request: Request) -> Response:
    """The balance of the key. Nothing is metered yet, so it never sinks."""
    Call.of(request).key.require(Scope.READ)
    return answer(CreditsBody(credits=UNMETERED_CREDITS, free_credits=0.0))
