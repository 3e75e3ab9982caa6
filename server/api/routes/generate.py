"""Asking for a video: `POST /v2/mochi-1` answers at once, `POST /v1/mochi-1` with the video."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.mock.scenario import SCENARIO
from models.params import MODEL, GenerateParams, parse_params
from server.api.call import Call
from server.api.dry_run import DRY_RUN, DryRunBody, dry_run_body, refused_body
from server.api.openapi import (
    FAILED,
    GENERATE_REQUEST,
    IGNORED_HEADER,
    RATE_HEADERS,
    REPLAYED_HEADER,
    RESULT_HEADERS,
    SUBMIT_REQUEST,
    VIDEO_BYTES,
    errors,
)
from server.api.routes.video_file import video_response
from server.api.schemas import (
    SubmittedBody,
    cost,
    failed_body,
    remaining,
    submitted_body,
)
from server.api.submission import scenario_fields, with_scenario
from server.errors import BadQueryError
from server.keys.lookup import Scope
from server.transport.body import read_object
from server.transport.disconnect import ClientDisconnected, unless_disconnected
from server.transport.parameters import (
    REPLAYED,
    flag,
    idempotency_key,
    ignored_parameters,
    rate_limit,
)
from server.transport.responses import answer
from server.webhooks.url import FIELD, webhook_url
from worker.errors import LimitError, TooFewCreditsError
from worker.job import Job, Status
from worker.store.gateway_side import Idempotency

CLIENT_CLOSED_REQUEST = 499
"""What proxies log for a client that has hung up."""

_VIDEO_HEADERS = RESULT_HEADERS | IGNORED_HEADER | REPLAYED_HEADER | RATE_HEADERS

router = APIRouter(tags=["Generate"])
Reader = Callable[[Request, int], Awaitable[dict[str, Any]]]
Translation = Callable[[dict[str, Any]], dict[str, Any]]
_seeds = random.SystemRandom()
_log = structlog.get_logger()


@router.post(
    f"/v2/{MODEL}",
    response_model=SubmittedBody | DryRunBody,
    responses={
        200: {"headers": IGNORED_HEADER | REPLAYED_HEADER | RATE_HEADERS},
        **errors(400, 401, 403, 406, 409, 413, 429, 500, 502),
    },
    openapi_extra=SUBMIT_REQUEST,
)
async def submit(request: Request) -> Response:
    """Queue a video and answer at once with the addresses to poll."""
    call = Call.of(request)
    if flag(request, DRY_RUN):
        return await _dry_run(call)
    asked = await accept(call)
    return answer(submitted_body(call.links(asked.request_id)), headers=asked.headers)


@router.post(
    f"/v1/{MODEL}",
    response_class=Response,
    responses={
        200: {**VIDEO_BYTES, "headers": _VIDEO_HEADERS},
        422: FAILED,
        **errors(400, 401, 403, 406, 409, 413, 429, 500, 502, 504),
    },
    openapi_extra=GENERATE_REQUEST,
)
async def generate(request: Request) -> Response:
    """Make a video and answer with it. Blocks until it is ready; hanging up cancels it."""
    call = Call.of(request)
    services = call.services
    asked = await accept(call, needs_worker=True)
    request.state.request_id = asked.request_id  # from here on, errors tell it: the job runs
    try:
        await unless_disconnected(
            request, services.watch.until_ended(asked.request_id, services.settings.v1_seconds)
        )
    except ClientDisconnected:
        if not asked.comes_back:
            services.cancel_for_sure(asked.request_id, call.key.key_id)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    job = await services.intake.find(asked.request_id, call.key.key_id)
    headers = {"x-request-id": asked.request_id, **asked.headers}
    if job.status is Status.FAILED:
        return answer(failed_body(job), 422, headers)
    return await video_response(services.outputs, job, headers | _result_headers(job))


@dataclass(frozen=True)
class Asked:
    """A request that was accepted. `comes_back`: its client can ask for it again by its own key."""

    request_id: str
    headers: dict[str, str]
    comes_back: bool


async def _dry_run(call: Call) -> Response:
    """What a submit would cost, and whether and when it would be run; needs no worker."""
    wish = await _read(call)
    idempotency_key(call.request)  # a bad one is refused, a good one left for the request itself
    price = call.services.settings.tariff.price(wish.params)
    try:
        position = await call.services.intake.try_out(call.key.key_id, price=price)
    except (LimitError, TooFewCreditsError) as error:
        body = refused_body(price, error)
    else:
        body = dry_run_body(price, position, await call.services.estimate(wish.params, position))
    return answer(body, headers=ignored_parameters(wish.ignored))


@dataclass(frozen=True)
class _Wish:
    """What somebody asks for who may. `further` are fields of its record; see `Job`."""

    params: GenerateParams
    ignored: list[str]
    body: dict[str, Any]
    further: dict[str, str]


async def _read(call: Call, read: Reader = read_object, translate: Translation = dict) -> _Wish:
    call.key.require(Scope.GENERATE)
    call.key.require_model(MODEL)
    body = with_scenario(call, await read(call.request, call.services.settings.body_bytes))
    url = webhook_url(call.request, body, call.services.webhook_guard)
    webhook = {} if url is None else {FIELD: url}  # the same wherever it came
    params, names = parse_params(translate(body))
    scenario = await scenario_fields(call, body)
    heeded = {FIELD, SCENARIO} if scenario else {FIELD}
    ignored = [name for name in names if name not in heeded]
    further = scenario | ({"webhook_base": call.base_url, **webhook} if webhook else {})
    return _Wish(params, ignored, body | webhook, further)


async def accept(
    call: Call,
    *,
    needs_worker: bool = False,
    read: Reader = read_object,
    translate: Translation = dict,
) -> Asked:
    """Queue what the body asks for.

    Args:
        call: whose body has not been read.
        needs_worker: refuse when nobody is there to run it soon.
        read: the body, of at most so many bytes.
        translate: to our names of the parameters.

    Raises:
        MochiError: one of those in the table of `errors.py`.
    """
    if flag(call.request, DRY_RUN):
        raise BadQueryError(f"`{DRY_RUN}` is for POST /v2/{MODEL} alone.")
    wish = await _read(call, read, translate)
    if str(wish.body.get(DRY_RUN)).lower() in {"true", "1"}:  # or it would make a video, and cost
        raise BadQueryError(f"`{DRY_RUN}` goes into the query: POST /v2/{MODEL}?{DRY_RUN}=true")
    key = idempotency_key(call.request)
    accepted = await call.services.intake.submit(
        wish.params.with_seed(_seeds),
        call.key.key_id,
        price=call.services.settings.tariff.price(wish.params),
        needs_worker=needs_worker,
        idempotency=None if key is None else Idempotency.of(call.key.key_id, key, wish.body),
        further=wish.further,
    )
    structlog.contextvars.bind_contextvars(request_id=accepted.request_id)
    _log.info(
        "request.replayed" if accepted.is_replay else "request.accepted",
        key_id=call.key.key_id,
        frames=wish.params.frames,
        steps=wish.params.steps,
    )
    headers = ignored_parameters(wish.ignored) | rate_limit(accepted.rate)
    headers |= REPLAYED if accepted.is_replay else {}
    return Asked(accepted.request_id, headers, comes_back=key is not None)


def _result_headers(job: Job) -> dict[str, str]:
    return {
        "x-generation-time": f"{job.inference_seconds:.3f}",
        "x-seed-value": str(job.params.seed),
        "x-cost": f"{cost(job):f}",
        "x-remaining-credits": f"{remaining(job):f}",
    }
