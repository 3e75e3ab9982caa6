"""Standing webhooks of a key, in the shape in which the `segmind` SDK asks for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.errors import InvalidParametersError
from server.api.call import Call
from server.api.listings import WebhookAttempt, WebhookDone, WebhookLogs, WebhookRow, WebhooksBody
from server.api.openapi import MOST_TYPES, WEBHOOK_BODY, errors
from server.errors import ForbiddenError, WebhookNotFoundError, WebhookUrlTakenError
from server.keys.lookup import Scope
from server.keys.times import from_ms
from server.transport.body import read_fields
from server.transport.parameters import Text, documented
from server.transport.responses import answer
from server.webhooks.url import FIELD, webhook_url
from worker.store.webhooks.deliveries import is_notice
from worker.store.webhooks.standing import MOST_WEBHOOKS, Put, Webhook

HEARD = ("INFERENCE", "GENERATION", "MODEL_INFERENCE")
"""Types of events that stand for the end of a request."""
BUDGET = "BUDGET"
"""That of notices of the key's monthly cap. Others are kept, and never sent."""
_NEARLY = 0.8
"""How alike two names are of which one is taken for a typing error; `VIDEO_GENERATION` and
`GENERATION` are less."""
_TYPE = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_ID = re.compile(r"[0-9a-f-]{36}")
_HTTP = re.compile(r"HTTP ([0-9]{3})")
_TYPES_RULE = (
    f"`event` must be an object with `types`, a list of 1 to {MOST_TYPES} names in capitals, like "
    '{"types": ["INFERENCE"]}.'
)
WEBHOOK_ID = Text(name="webhook_id", is_required=True, description="As in `webhooks`.")
_CHANGED: dict[str, Any] = {
    "response_model": WebhookDone,
    "responses": errors(400, 401, 403, 404, 406, 409, 413, 415, 500, 502),
}

router = APIRouter(prefix="/webhook", tags=["Standing webhooks"])
_log = structlog.get_logger()


@router.get("/get", response_model=WebhooksBody, responses=errors(401, 403, 500, 502))
async def list_webhooks(request: Request) -> Response:
    """The key's standing webhooks."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    found = await call.services.standing.of_owner(call.key.key_id)
    return answer(WebhooksBody(webhooks=[_row(*item) for item in found.items()]))


@router.post("/add", **_CHANGED, openapi_extra={"requestBody": WEBHOOK_BODY})
async def add_webhook(request: Request) -> Response:
    """Send the end of each of the key's requests to a URL. One that the key has is updated.

    With the event type `BUDGET`, send notices of the key's monthly cap.
    """
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    webhook = _read(call, await _fields(call))
    match await call.services.standing.add(call.key.key_id, webhook):
        case Put.TOO_MANY, _:
            raise ForbiddenError(
                f"This API key has {MOST_WEBHOOKS} webhooks, the most; delete one of them first."
            )
        case done, webhook_id:
            what = "added" if done is Put.ADDED else "updated"
            return _done(call, webhook_id, what, _sent(webhook))


@router.post("/update", **_CHANGED, openapi_extra={"requestBody": WEBHOOK_BODY})
async def update_webhook(request: Request) -> Response:
    """Change the URL and the events of a standing webhook."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    fields = await _fields(call)
    webhook = _read(call, fields)
    webhook_id = fields.get(WEBHOOK_ID.name)
    if not isinstance(webhook_id, str) or not _ID.fullmatch(webhook_id):
        raise WebhookNotFoundError
    match await call.services.standing.change(call.key.key_id, webhook_id, webhook):
        case Put.UNKNOWN, _:
            raise WebhookNotFoundError
        case Put.TAKEN, other_id:
            raise WebhookUrlTakenError(other_id)
    return _done(call, webhook_id, "updated", _sent(webhook))


@router.get("/inactive", **_CHANGED, openapi_extra={"parameters": documented(WEBHOOK_ID)})
async def delete_webhook(request: Request) -> Response:
    """Delete a standing webhook; its waiting deliveries are given up."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    webhook_id = WEBHOOK_ID.read(request)
    if not await call.services.standing.delete(call.key.key_id, webhook_id):
        raise WebhookNotFoundError
    return _done(call, webhook_id, "deleted", "Waiting deliveries are given up.")


@router.get(
    "/dispatch-logs",
    response_model=WebhookLogs,
    responses=errors(401, 403, 404, 500, 502),
    openapi_extra={"parameters": documented(WEBHOOK_ID)},
)
async def get_webhook_logs(request: Request) -> Response:
    """The attempts of a standing webhook's latest 100 deliveries, the newest delivery first."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    webhook_id = WEBHOOK_ID.read(request)
    if webhook_id not in await call.services.standing.of_owner(call.key.key_id):
        raise WebhookNotFoundError
    attempts = [
        _attempt(request_id, at, outcome)
        for request_id, log in await call.services.standing.log(webhook_id)
        for at, outcome in reversed(log)
    ]
    return answer(WebhookLogs(webhook_id=webhook_id, logs=attempts))


async def _fields(call: Call) -> dict[str, Any]:
    return await read_fields(call.request, call.services.settings.body_bytes, ())


def _read(call: Call, fields: Mapping[str, Any]) -> Webhook:
    """The webhook in a body. Raises InvalidParametersError."""
    url = webhook_url([fields.get(FIELD)], call.services.webhook_guard)
    if url is None:
        raise InvalidParametersError(f"`{FIELD}` is missing: the URL of your receiver.")
    event = fields.get("event")
    types = event.get("types") if isinstance(event, dict) else None
    if not isinstance(types, list) or not 0 < len(types) <= MOST_TYPES:
        raise InvalidParametersError(_TYPES_RULE)
    if not all(isinstance(name, str) and _TYPE.fullmatch(name) for name in types):
        raise InvalidParametersError(_TYPES_RULE)
    for name in types:
        _refuse_typo(name)
    return Webhook(
        url=url,
        base=call.base_url,
        types=types,
        is_heard=not {*types}.isdisjoint(HEARD),
    )


def _refuse_typo(name: str) -> None:
    """Raise InvalidParametersError for a name that is nearly one of ours.

    Further ones are kept: the hosted API has types of which this server makes no events.
    """
    known = (*HEARD, BUDGET)
    meant = [] if name in known else get_close_matches(name, known, n=1, cutoff=_NEARLY)
    if meant:
        *others, last = (f"`{each}`" for each in known)
        raise InvalidParametersError(
            f"`event`: there is no type `{name}`; did you mean `{meant[0]}`? This server sends "
            f"{', '.join(others)} and {last}."
        )


def _sent(webhook: Webhook) -> str:
    notices = "notices of the key's monthly cap"
    if webhook.is_heard:
        more = f", and {notices}" * (BUDGET in webhook.types)
        return f"It receives the end of each request{more}."
    if BUDGET in webhook.types:
        return f"It receives {notices}."
    heard = ", ".join(f"`{name}`" for name in HEARD)
    return (
        f"It receives nothing: this server sends the ends of requests only, as {heard}, and "
        f"{notices}, as `{BUDGET}`."
    )


def _done(call: Call, webhook_id: str, what: str, effect: str) -> Response:
    _log.info("webhook.changed", key_id=call.key.key_id, webhook_id=webhook_id, change=what)
    return answer(WebhookDone(webhook_id=webhook_id, message=f"Webhook {what}. {effect}"))


def _row(webhook_id: str, webhook: Webhook) -> WebhookRow:
    return WebhookRow(
        webhook_id=webhook_id,
        webhook_url=webhook.url,
        event_types=webhook.types,
        created_at=from_ms(webhook.created_at),
    )


def _attempt(request_id: str, at: int, outcome: str) -> WebhookAttempt:
    code = _HTTP.fullmatch(outcome)
    is_delivered = outcome.startswith("HTTP 2")
    return WebhookAttempt(
        timestamp=from_ms(at),
        request_id=request_id,
        event_type="BUDGET" if is_notice(request_id) else "INFERENCE",
        status="delivered" if is_delivered else "failed",
        response_code=int(code[1]) if code else None,
        error=None if is_delivered else outcome,
    )
