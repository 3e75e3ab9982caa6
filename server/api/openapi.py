"""The OpenAPI document: what the code cannot say of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from models.example import EXAMPLE_REQUEST
from models.mock.scenario import FORM as SCENARIO_FORM
from models.mock.scenario import SCENARIO
from models.params import MODEL, GenerateParams
from server.api.dry_run import DRY_RUN
from server.api.schemas import VIDEO_TYPE, FailedBody
from server.api.video_object import FORM, SIZE
from server.errors import MEANING
from server.paths import PUBLIC
from server.transport.error_body import ErrorBody
from server.transport.parameters import MOST_KEY_LENGTH, VALUES
from server.webhooks.url import FIELD
from server.webhooks.url import MOST_LENGTH as MOST_URL_LENGTH
from worker.store.usage import KEPT_DAYS


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

MOCK_SCENARIO: dict[str, Any] = {
    "name": SCENARIO,
    "in": "header",
    "required": False,
    "description": (
        "With mock weights, an outcome to test a client against; with real ones it is ignored. "
        "It may stand in the body as well, as a field of this name."
    ),
    "schema": {"type": "string", "pattern": SCENARIO_FORM},
}
_FLAG: dict[str, Any] = {"type": "string", "enum": list(VALUES), "default": "false"}
_DRY_RUN: dict[str, Any] = {
    "name": DRY_RUN,
    "in": "query",
    "required": False,
    "description": (
        "`true` or `1`: only say what the request would cost, and whether and when it would be "
        "run. The answer is a `DryRunBody`."
    ),
    "schema": _FLAG,
}
PREVIEW: dict[str, Any] = {
    "name": "preview",
    "in": "query",
    "required": False,
    "description": "`true` or `1`: with the latest picture of the run, where there is one.",
    "schema": _FLAG,
}


def _generate_schema() -> dict[str, Any]:
    schema = GenerateParams.model_json_schema()
    url = _WEBHOOK_URL["schema"] | {"type": ["string", "null"]}
    schema["properties"][FIELD] = url | {"description": _WEBHOOK_URL["description"]}
    return schema


GENERATE_REQUEST: dict[str, Any] = {
    "parameters": [IDEMPOTENCY_KEY, WEBHOOK_URL, MOCK_SCENARIO],
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
SUBMIT_REQUEST: dict[str, Any] = {
    **GENERATE_REQUEST,
    "parameters": [*GENERATE_REQUEST["parameters"], _DRY_RUN],
}
_OF_VIDEOS = _generate_schema()
_OF_VIDEOS["properties"] |= {
    "model": {"type": "string", "enum": [MODEL], "default": MODEL},
    "size": {"type": "string", "enum": [SIZE], "default": SIZE},
    "seconds": {
        "anyOf": [{"type": "number"}, {"type": "string"}],
        "description": "In place of `frames`: the length of the video, at its `fps`.",
    },
}
VIDEOS_REQUEST: dict[str, Any] = {
    "parameters": GENERATE_REQUEST["parameters"],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _OF_VIDEOS, "example": {"prompt": "a pond"}},
            FORM: {"schema": _OF_VIDEOS},
        },
    },
}
PAGE: list[dict[str, Any]] = [
    {
        "name": "limit",
        "in": "query",
        "required": False,
        "description": "Of one page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    },
    {
        "name": "after",
        "in": "query",
        "required": False,
        "description": "The `last_id` of the page before.",
        "schema": {"type": "string"},
    },
    {
        "name": "order",
        "in": "query",
        "required": False,
        "description": "By the time of the submit.",
        "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    },
]
VARIANT: dict[str, Any] = {
    "name": "variant",
    "in": "query",
    "required": False,
    "description": "There is nothing but the video.",
    "schema": {"type": "string", "enum": ["video"], "default": "video"},
}
_SECURITY: dict[str, Any] = {
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def errors(*statuses: int, body: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses."""
    if HTTPStatus.UNAUTHORIZED in statuses:
        statuses += (429,)  # where a key may be bad, too many may be
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": body, "description": MEANING[status]} for status in sorted(statuses)
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
            _restore_limits(schema, app.state.routes)
            schema["components"]["securitySchemes"] = _SECURITY
            schema["security"] = [{name: []} for name in _SECURITY]
            for path in PUBLIC & set(schema["paths"]):
                schema["paths"][path]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def _restore_limits(schema: dict[str, Any], routes: Iterable[APIRoute]) -> None:
    """FastAPI turns limits into floats on the way, and the largest seed is none."""
    for route in routes:
        if route.include_in_schema and route.openapi_extra:
            for method in route.methods or ():
                schema["paths"][route.path][method.lower()].update(route.openapi_extra)
