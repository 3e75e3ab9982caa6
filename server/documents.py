"""The OpenAPI document: what the code cannot say of itself."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from models.params import GenerateParams
from server.errors import MEANING
from server.example import EXAMPLE_REQUEST
from server.gate import PUBLIC
from server.headers import MOST_KEY_LENGTH
from server.schemas import VIDEO_TYPE, ErrorBody, FailedBody
from server.webhook_url import FIELD
from server.webhook_url import MOST_LENGTH as MOST_URL_LENGTH
from worker.usage import KEPT_DAYS


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


IGNORED_HEADER = {"x-ignored-parameters": _header("Names in the body that mean nothing to us.")}
REPLAYED_HEADER = {
    "Idempotency-Replayed": _header("`true`: the request had been made before, by the same key.")
}
RATE_HEADERS = {
    "x-ratelimit-limit": _header(
        "Requests that the key may submit in any minute; where it is limited.", "integer"
    ),
    "x-ratelimit-remaining": _header("Of these, now.", "integer"),
    "x-ratelimit-reset": _header("Seconds until there is one more.", "integer"),
}
RETRY_HEADERS = RATE_HEADERS | {
    "retry-after": _header("Seconds.", "integer"),
    "x-rate-limit-reset-at-utc": _header("The same as a time."),
}
RESULT_HEADERS = {
    "x-request-id": _header("The id of the request."),
    "x-generation-time": _header("Seconds of the run.", "number"),
    "x-seed-value": _header("The seed that was used.", "integer"),
    "x-cost": _header("Credits.", "number"),
    "x-remaining-credits": _header("Credits.", "number"),
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
VIDEO_BYTES: dict[str, Any] = {"description": "The MP4", "content": {VIDEO_TYPE: _BINARY}}
VIDEO_RANGE: dict[str, Any] = {"description": "A range of it", "content": {VIDEO_TYPE: _BINARY}}
FIGURES: dict[str, Any] = {
    "description": "In Prometheus' text format",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
FAILED: dict[str, Any] = {"model": FailedBody, "description": MEANING[422]}
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["status", "progress", "preview", "output"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "oneOf": [
                    {"$ref": f"#/components/schemas/{body}"}
                    for body in ("StatusBody", "ResultBody", "FailedBody")
                ]
            },
        },
    },
}
EVENTS: dict[str, Any] = {
    "description": (
        "`status` at first and when the state changes, `progress` in between, or `preview`, with "
        "the status as JSON; at last `output` with the result, or `status` with the failure."
    ),
    "content": {"text/event-stream": {"itemSchema": _EVENT}},
}
REQUEST_ID: dict[str, Any] = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "description": "As in the answer to the submit.",
    "schema": {"type": "string"},
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "The same key with the same body is answered with the first request, as long as that "
        "is kept. A blocking call that has one is not cancelled when its client hangs up."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": MOST_KEY_LENGTH},
}
DAYS: dict[str, Any] = {
    "name": "days",
    "in": "query",
    "required": False,
    "description": "Up to today, in UTC.",
    "schema": {"type": "integer", "minimum": 1, "maximum": KEPT_DAYS, "default": 30},
}
SIGNATURE: dict[str, Any] = {
    "name": "signature",
    "in": "query",
    "required": True,
    "description": "As in the `output` of the result.",
    "schema": {"type": "string"},
}
_WEBHOOK_URL: dict[str, Any] = {
    "description": (
        "Where the end of the request is told of, by a signed POST; see the webhooks of this "
        "document. http or https, and to the outside."
    ),
    "schema": {"type": "string", "maxLength": MOST_URL_LENGTH},
}
WEBHOOK_URL: dict[str, Any] = {"name": FIELD, "in": "query", "required": False, **_WEBHOOK_URL}


def _generate_schema() -> dict[str, Any]:
    schema = GenerateParams.model_json_schema()
    description = _WEBHOOK_URL["description"]
    schema["properties"][FIELD] = _WEBHOOK_URL["schema"] | {"description": description}
    return schema


GENERATE_REQUEST: dict[str, Any] = {
    "parameters": [IDEMPOTENCY_KEY, WEBHOOK_URL],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _generate_schema(),
                "example": EXAMPLE_REQUEST,
            }
        },
    },
}
_SECURITY: dict[str, Any] = {
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses."""
    if HTTPStatus.UNAUTHORIZED in statuses:
        statuses += (429,)  # where a key may be bad, too many may be
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": MEANING[status]} for status in sorted(statuses)
    }
    if HTTPStatus.TOO_MANY_REQUESTS in answers:
        answers[HTTPStatus.TOO_MANY_REQUESTS]["headers"] = RETRY_HEADERS
    return answers


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What replaces `app.openapi`: the same, with keys and exact limits."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                webhooks=app.webhooks.routes,
            )
            _restore_limits(schema)
            schema["components"]["securitySchemes"] = _SECURITY
            schema["security"] = [{name: []} for name in _SECURITY]
            for path in PUBLIC & set(schema["paths"]):
                schema["paths"][path]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def _restore_limits(schema: dict[str, Any]) -> None:
    """FastAPI turns limits into floats on the way, and the largest seed is none."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                operation.update(GENERATE_REQUEST)
