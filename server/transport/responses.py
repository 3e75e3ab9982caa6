"""Builds responses. Every error is `{"error": "…"}` and holds nothing internal.

Below `/v1/videos` it is `{"error": {"message": "…"}}`, which clients of that shape expect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from urllib.parse import quote

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
from server.paths import VIDEOS_PATH
from server.transport.error_body import ErrorBody, VideosError, VideosErrorBody
from worker.errors import LimitError, Rate, TooFastError

MOST_IGNORED_NAMES = 20
MOST_NAME_LENGTH = 40
REPLAYED = {"Idempotency-Replayed": "true"}


def answer(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers=headers, media_type="application/json")


def rate_limit(rate: Rate | None) -> dict[str, str]:
    """Response headers: how many more requests the key may submit."""
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit": str(rate.limit),
        "x-ratelimit-remaining": str(rate.remaining),
        "x-ratelimit-reset": str(math.ceil(rate.reset_seconds)),
    }


def ignored_parameters(names: Iterable[str]) -> dict[str, str]:
    """Response header: unknown names of the body, quoted as they come from the client."""
    quoted = [quote(name[:MOST_NAME_LENGTH], errors="replace") for name in names]
    if not quoted:
        return {}
    return {"x-ignored-parameters": ", ".join(quoted[:MOST_IGNORED_NAMES])}


def answer_for_error(error: MochiError, path: str, request_id: str | None = None) -> Response:
    """The response for an error, by the table in `server/errors.py`.

    Args:
        error: its text is for the client.
        path: of the call.
        request_id: of a request that was accepted before the error.
    """
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
    return answer(_error_body(str(error), status, path, request_id), status, headers)


def answer_for_bug(path: str, request_id: str | None) -> Response:
    """A 500 without details: they are in the log."""
    error = "Internal error. The server's log has the details."
    return answer(_error_body(error, 500, path, request_id), 500)


async def handle_routing_error(request: Request, error: Exception) -> Response:
    """The router's error for an unknown path or a wrong verb."""
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this type only)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _verbs(request) or (error.headers or {}).get("Allow", "")
        wrong = WrongVerbError(f"Wrong verb. This path takes: {allowed}.")
        refusal = answer_for_error(wrong, request.url.path)
        refusal.headers["Allow"] = allowed
        return refusal
    has_docs = request.app.openapi_url is not None
    return answer_for_error(UnknownRouteError(has_docs=has_docs), request.url.path)


async def handle_error(request: Request, error: Exception) -> Response:
    """An error that a route raises."""
    assert isinstance(error, MochiError)  # noqa: S101 (registered for this type only)
    request_id = getattr(request.state, "request_id", None)
    return answer_for_error(error, request.url.path, request_id)


def _error_body(text: str, status: int, path: str, request_id: str | None) -> BaseModel:
    if f"{path}/".startswith(f"{VIDEOS_PATH}/"):
        return VideosErrorBody(error=VideosError(message=text, code=status), request_id=request_id)
    return ErrorBody(error=text, request_id=request_id)


def _verbs(request: Request) -> str:
    """The verbs of all routes with this path: the router names only those of the first."""
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
