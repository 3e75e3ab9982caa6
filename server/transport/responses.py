"""Builds responses. Every error is `{"error": "…"}` and holds nothing internal.

Where the OpenAI API has the path, it is `{"error": {"message": "…"}}`, as its clients expect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import islice
from urllib.parse import quote

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from models.errors import InvalidParametersError, MochiError
from server.errors import (
    STATUS,
    McpMissingError,
    NoVersionError,
    RangeError,
    TooManyBadKeysError,
    UnknownRouteError,
    WrongVerbError,
)
from server.paths import MCP, OPENAI_FOLDERS
from server.transport.error_body import ErrorBody, VideosError, VideosErrorBody
from worker.errors import LimitError, Rate, TooFastError

MOST_IGNORED_NAMES = 20
MOST_NAME_LENGTH = 40
BUG = "Internal error. The server's log has the details."
RESET_AT = "x-rate-limit-reset-at-utc"
REPLAYED = {"Idempotency-Replayed": "true"}


def answer(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers=headers, media_type="application/json")


def not_modified(request: Request, headers: Mapping[str, str]) -> Response | None:
    """A 304 to a client that names the `etag` of these headers in `If-None-Match`, or None.

    It may name several, and weakly (RFC 9110, section 13.1.2).
    """
    known = request.headers.get("if-none-match", "").split(",")
    if not any(each.strip().removeprefix("W/") in {headers["etag"], "*"} for each in known):
        return None
    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)


def rate_limit(rate: Rate | None) -> dict[str, str]:
    """Response headers: how many more requests the key may submit."""
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit": str(rate.limit),
        "x-ratelimit-remaining": str(rate.remaining),
        "x-ratelimit-reset": str(math.ceil(rate.reset_seconds)),
        RESET_AT: _utc_in(rate.reset_seconds),
    }


def ignored_parameters(names: Iterable[str]) -> dict[str, str]:
    """Response header: unknown names of the body, quoted as they come from the client."""
    quoted = [quote(name) for name in shown_names(names)]
    return {"x-ignored-parameters": ", ".join(quoted)} if quoted else {}


def shown_names(names: Iterable[str]) -> list[str]:
    """As many of a client's names as a response has room for, cut where they are long.

    JSON can name half of a surrogate pair, which no text in UTF-8 can hold.
    """
    return [
        name[:MOST_NAME_LENGTH].encode(errors="replace").decode()
        for name in islice(names, MOST_IGNORED_NAMES)
    ]


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
    body = _error_body(str(error), status, path, request_id)
    if isinstance(body, ErrorBody) and isinstance(error, InvalidParametersError):
        body.parameters = error.parameters
    return answer(body, status, headers)


def answer_for_bug(path: str, request_id: str | None) -> Response:
    """A 500 without details: they are in the log."""
    return answer(_error_body(BUG, 500, path, request_id), 500)


def answer_for_exception(error: Exception, scope: Scope) -> Response | None:
    """The response for an exception that a route or the router raises; None for a bug."""
    if isinstance(error, MochiError):
        return answer_for_error(error, scope["path"], scope["state"].get("request_id"))
    if isinstance(error, HTTPException):
        return _answer_for_routing(error, scope)
    return None


def _answer_for_routing(error: HTTPException, scope: Scope) -> Response:
    """For an unknown path or a wrong verb."""
    app = scope["app"]
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _verbs(app.state.routes, scope) or (error.headers or {}).get("Allow", "")
        wrong = WrongVerbError(f"Wrong verb. This path takes: {allowed}.")
        refusal = answer_for_error(wrong, scope["path"])
        refusal.headers["Allow"] = allowed
        return refusal
    path, has_docs = scope["path"], app.openapi_url is not None
    if path == MCP:
        return answer_for_error(McpMissingError(), path)
    with_version = {**scope, "path": f"/v1{path}"}
    if any(route.matches(with_version)[0] is not Match.NONE for route in app.state.routes):
        base_url = scope["state"]["base_url"]
        return answer_for_error(NoVersionError(base_url), path)
    return answer_for_error(
        UnknownRouteError(app.state.services.models.slugs, has_docs=has_docs), path
    )


def _error_body(text: str, status: int, path: str, request_id: str | None) -> BaseModel:
    if f"{path}/".startswith(OPENAI_FOLDERS):
        return VideosErrorBody(error=VideosError(message=text, code=status), request_id=request_id)
    return ErrorBody(error=text, request_id=request_id)


def _verbs(routes: Iterable[Route], scope: Scope) -> str:
    """The verbs of all routes with this path: the router names only those of the first."""
    verbs: set[str] = set()
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            verbs |= route.methods or set()
    if "GET" in verbs:
        verbs.add("HEAD")  # see `Middleware`
    return ", ".join(sorted(verbs))


def _retry_headers(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds)), RESET_AT: _utc_in(seconds)}


def _utc_in(seconds: float) -> str:
    time = datetime.now(UTC) + timedelta(seconds=math.ceil(seconds))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
