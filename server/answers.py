"""Turns errors into answers. Every one is `{"error": "…"}`, and nothing internal is in it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from models.errors import MochiError
from server.errors import (
    STATUS,
    RangeError,
    TooManyBadKeysError,
    UnknownRouteError,
    WrongVerbError,
)
from server.headers import rate_limit
from server.schemas import ErrorBody
from worker.errors import LimitError, TooFastError


def answer(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A model as JSON."""
    return Response(body.model_dump_json(), status, headers=headers, media_type="application/json")


def answer_for_error(error: MochiError, request_id: str | None = None) -> Response:
    """By the table in `server/errors.py`. `request_id` is that of a job already accepted."""
    status = STATUS[type(error)]
    headers = {}
    if isinstance(error, LimitError | TooManyBadKeysError):
        headers = _retry_headers(error.retry_seconds)
    if isinstance(error, TooFastError):
        headers |= rate_limit(error.rate)
    if isinstance(error, RangeError):
        headers = {"content-range": f"bytes */{error.size}"}
    if request_id is not None:
        headers["x-request-id"] = request_id
    return answer(ErrorBody(error=str(error), request_id=request_id), status, headers)


def answer_for_bug(request_id: str | None) -> Response:
    """Says nothing of what happened: that is in the log."""
    error = "Internal error. The server's log says more."
    return answer(ErrorBody(error=error, request_id=request_id), 500)


async def handle_routing_error(request: Request, error: Exception) -> Response:
    """What Starlette's router raises for an unknown path or a wrong verb."""
    assert isinstance(error, HTTPException)  # noqa: S101 (how it is registered)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _verbs(request) or (error.headers or {}).get("Allow", "")
        refusal = answer_for_error(WrongVerbError(f"Wrong verb. This path takes: {allowed}."))
        refusal.headers["Allow"] = allowed
        return refusal
    has_docs = request.app.openapi_url is not None
    return answer_for_error(UnknownRouteError(has_docs=has_docs))


async def handle_error(request: Request, error: Exception) -> Response:
    """What our own code raises within a route."""
    assert isinstance(error, MochiError)  # noqa: S101 (how it is registered)
    return answer_for_error(error, getattr(request.state, "request_id", None))


def _verbs(request: Request) -> str:
    """Of all routes with this path: the router names those of the first one only."""
    verbs: set[str] = set()
    for route in request.app.state.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            verbs |= route.methods
    return ", ".join(sorted(verbs))


def _retry_headers(seconds: float) -> dict[str, str]:
    whole = math.ceil(seconds)
    reset = datetime.now(UTC) + timedelta(seconds=whole)
    return {
        "retry-after": str(whole),
        "x-rate-limit-reset-at-utc": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
