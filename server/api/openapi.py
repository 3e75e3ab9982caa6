"""Additions to FastAPI's OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from models.request.catalogue import CATALOGUE, MOCHI, Model
from models.request.example import EXAMPLE_REQUEST
from models.request.params import FORMATS, MODEL, STILL_TYPE
from server.api.schemas import FailedBody
from server.api.submit.plan import COUNT, DESCRIPTIONS, DRAFT_STEPS, MOST_REQUESTS
from server.api.submit.submission import WEBHOOK_URL
from server.api.videos.object import SIZE
from server.errors import MEANING
from server.paths import PUBLIC, VERSION_PATH
from server.transport.body import JSON, MULTIPART, URLENCODED
from server.transport.error_body import ErrorBody
from server.transport.parameters import Text
from server.transport.responses import RESET_AT


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


def _reference(component: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{component}"}


RATE_HEADERS = {
    "x-ratelimit-limit": _header(
        "Requests that the key may submit per minute, if it is limited.", "integer"
    ),
    "x-ratelimit-remaining": _header("Requests left of these.", "integer"),
    "x-ratelimit-reset": _header("Seconds until one more is allowed.", "integer"),
    RESET_AT: _header("The same, as a time."),
}
RETRY_HEADERS = RATE_HEADERS | {
    "retry-after": _header("Seconds to wait.", "integer"),
}
SUBMIT_HEADERS = {
    "x-ignored-parameters": _header("Unknown names in the body and the query."),
    "Idempotency-Replayed": _header(
        "`true`: the idempotency key was used before; this is the first request."
    ),
    **RATE_HEADERS,
}
RESULT_HEADERS = {
    "x-request-id": _header("The id of the request."),
    "x-generation-time": _header("Duration of the run in seconds.", "number"),
    "x-seed-value": _header("The seed that was used.", "integer"),
    "x-cost": _header("Credits charged.", "number"),
    "x-remaining-credits": _header("Credits left.", "number"),
    "x-cached": _header("`true`: the result cache had the video."),
    **SUBMIT_HEADERS,
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
VIDEO_BYTES: dict[str, Any] = {
    "description": "The video, in the `format` of the request",
    "content": dict.fromkeys(FORMATS.values(), _BINARY),
}
VIDEO_RANGE = VIDEO_BYTES | {"description": "A byte range of it"}
NOT_MODIFIED = {"description": "The client has it: `If-None-Match` names its `ETag`"}
STILL_BYTES: dict[str, Any] = {"description": "The JPEG", "content": {STILL_TYPE: _BINARY}}
STILL_RANGE = STILL_BYTES | {"description": "A byte range of it"}
CONTENT_BYTES: dict[str, Any] = {
    "description": "The video, in the `format` of the request, or its poster",
    "content": VIDEO_BYTES["content"] | STILL_BYTES["content"],
}
CONTENT_RANGE = CONTENT_BYTES | {"description": "A byte range of it"}
METRICS_TEXT: dict[str, Any] = {
    "description": "In Prometheus' text format",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
FAILED: dict[str, Any] = {"model": FailedBody, "description": MEANING[422]}
EVENT_STREAM: dict[str, Any] = {
    "description": (
        "`status` first and at each change of state; `progress` or `preview` in between, with the "
        "status as JSON; finally `output` with the result, or `status` with the failure."
    ),
    "content": {"text/event-stream": {"itemSchema": _reference("RequestEvent")}},
}
REQUEST_ID = Text(
    name="request_id",
    place="path",
    is_required=True,
    description="As in the response to the submit.",
)


def _body(component: str, example: dict[str, Any]) -> dict[str, Any]:
    """A request body as JSON or as a form."""
    schema = {"schema": _reference(component)}
    return {
        "required": True,
        "content": {
            JSON: {**schema, "example": example},
            MULTIPART: schema,
            URLENCODED: schema,
        },
    }


def _component(model: Model, kind: str = "GenerateRequest") -> str:
    """Name of the schema of a model's parameters."""
    words = [] if model is MOCHI else model.slug.split("-")
    return "".join(map(str.capitalize, words)) + kind


def generate_body(model: Model) -> dict[str, Any]:
    """The request body of a model, with the example of the hosted API in its ranges."""
    return _body(_component(model), _example(model))


def submit_body(model: Model) -> dict[str, Any]:
    """The same for a submit that does not wait for the video."""
    return _body(_component(model, SUBMIT_REQUEST), _example(model))


def _example(model: Model) -> dict[str, Any]:
    schema = model.request.model_json_schema()["properties"]
    defaults = {name: field["default"] for name, field in schema.items() if "minimum" in field}
    return EXAMPLE_REQUEST | defaults


FINISH_BODY = _body("FinishRequest", {}) | {"required": False}
VIDEO_BODY = _body("VideoRequest", {"prompt": "a pond"})
WEBHOOK_BODY = {"required": True, "content": {JSON: {"schema": _reference("WebhookRequest")}}}
SUBMIT_REQUEST = "SubmitRequest"
_WEBHOOK_FIELD = {
    WEBHOOK_URL.name: {
        **WEBHOOK_URL.schema,
        "type": ["string", "null"],
        "description": WEBHOOK_URL.description,
    }
}
MOST_TYPES = 20
"""Of events, of a standing webhook."""


def parameters_of(models: Iterable[Model]) -> dict[str, Any]:
    """The JSON schema of the parameters of several models: its ranges hold those of each."""
    schema, *others = (model.request.model_json_schema() for model in models)
    for other in others:
        for name, field in other["properties"].items():
            for limit, widest in (("minimum", min), ("maximum", max)):
                if limit in field:
                    kept = schema["properties"][name]
                    kept[limit] = widest(kept[limit], field[limit])
    return schema


def _generate_request(*models: Model) -> dict[str, Any]:
    schema = parameters_of(models)
    schema |= {"title": _component(models[0]), "description": "The parameters of a video."}
    schema["properties"] |= _WEBHOOK_FIELD
    return schema


def _submit_request(model: Model) -> dict[str, Any]:
    schema = _generate_request(model)
    schema["title"] = _component(model, SUBMIT_REQUEST)
    limits = {DRAFT_STEPS: int(model.parameters.most("steps")) - 1, COUNT: MOST_REQUESTS}
    schema["properties"] |= {
        name: {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": most,
            "description": DESCRIPTIONS[name],
        }
        for name, most in limits.items()
    }
    return schema


def _video_request() -> dict[str, Any]:
    schema = _generate_request(*CATALOGUE.values())
    schema["title"] = "VideoRequest"
    schema["properties"] |= {
        "model": {
            "type": "string",
            "enum": [*CATALOGUE],
            "default": MODEL,
            "description": "Its own ranges and defaults apply: see the routes under /v2.",
        },
        "size": {"type": "string", "enum": [SIZE], "default": SIZE},
        "seconds": {
            "anyOf": [{"type": "number"}, {"type": "string"}],
            "description": "Instead of `frames`: the duration of the video at its `fps`.",
        },
    }
    return schema


def _finish_request() -> dict[str, Any]:
    return {
        "type": "object",
        "title": "FinishRequest",
        "description": "Everything else is the draft's.",
        "properties": _WEBHOOK_FIELD,
    }


def _webhook_request() -> dict[str, Any]:
    types = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_TYPES}
    return {
        "type": "object",
        "required": [WEBHOOK_URL.name, "event"],
        "properties": {
            "webhook_id": {"type": "string", "description": "Of the one to be changed."},
            WEBHOOK_URL.name: {**WEBHOOK_URL.schema, "description": "The receiver."},
            "event": {"type": "object", "required": ["types"], "properties": {"types": types}},
        },
    }


_COMPONENTS: dict[str, Any] = {
    **{_component(model): _generate_request(model) for model in CATALOGUE.values()},
    **{_component(model, SUBMIT_REQUEST): _submit_request(model) for model in CATALOGUE.values()},
    "FinishRequest": _finish_request(),
    "VideoRequest": _video_request(),
    "WebhookRequest": _webhook_request(),
    "RequestEvent": {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"enum": ["status", "progress", "preview", "output"]},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {
                    "oneOf": [
                        _reference(body) for body in ("StatusBody", "ResultBody", "FailedBody")
                    ]
                },
            },
        },
    },
}
_SECURITY: dict[str, Any] = {
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def errors(*statuses: int, body: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may return these error statuses."""
    if HTTPStatus.UNAUTHORIZED in statuses:
        statuses += (429,)  # too many bad keys
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": body, "description": MEANING[status]} for status in sorted(statuses)
    }
    if HTTPStatus.TOO_MANY_REQUESTS in answers:
        answers[HTTPStatus.TOO_MANY_REQUESTS]["headers"] = RETRY_HEADERS
    return answers


def name_suffix(model: Model) -> str:
    """Makes the name of a model's route unique. The default model's has the function's name."""
    return "" if model is MOCHI else "_" + model.slug.replace("-", "_")


def operation_id(route: APIRoute) -> str:
    """The route's function, or the `name` of its second path: unique and stable."""
    return route.name


def document(app: FastAPI, public_url: str) -> Callable[[], dict[str, Any]]:
    """A replacement for `app.openapi` that adds servers, keys, request bodies and exact limits."""
    app.servers = [{"url": public_url or "/"}]
    build = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        schema = build()
        schema["components"]["schemas"] |= _COMPONENTS
        _restore_limits(schema, app.state.routes)
        schema["components"]["securitySchemes"] = _SECURITY
        schema["security"] = [{name: []} for name in _SECURITY]
        for path in (PUBLIC | {VERSION_PATH}) & set(schema["paths"]):
            schema["paths"][path]["get"]["security"] = []
        return schema

    return openapi


def _restore_limits(schema: dict[str, Any], routes: Iterable[APIRoute]) -> None:
    """FastAPI turns limits into floats, which cannot hold the largest seed."""
    for route in routes:
        if route.include_in_schema and route.openapi_extra:
            for method in route.methods or ():
                schema["paths"][route.path][method.lower()].update(route.openapi_extra)
