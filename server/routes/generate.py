"""Asking for a video: `POST /v2/mochi-1` answers at once, `POST /v1/mochi-1` with the video."""

from __future__ import annotations

import random
from collections.abc import Iterable
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.params import MODEL, GenerateParams, parse_params
from server.answers import answer
from server.body import read_object
from server.documents import (
    FAILED,
    GENERATE_BODY,
    IGNORED_HEADER,
    RESULT_HEADERS,
    VIDEO_BYTES,
    errors,
)
from server.keyring import Scope
from server.schemas import (
    COST,
    UNMETERED_CREDITS,
    SubmittedBody,
    failed_body,
    submitted_body,
)
from server.services import Call
from server.videos import video_response
from worker.job import Job, Status

MOST_IGNORED_NAMES = 20
MOST_NAME_LENGTH = 40

router = APIRouter(tags=["Generate"])
_seeds = random.SystemRandom()


@router.post(
    f"/v2/{MODEL}",
    response_model=SubmittedBody,
    responses={
        200: {"headers": IGNORED_HEADER},
        **errors(400, 401, 403, 406, 413, 429, 500, 502),
    },
    openapi_extra=GENERATE_BODY,
)
async def submit(request: Request) -> Response:
    """Queue a video and answer at once with the addresses to poll."""
    call = Call.of(request)
    params, ignored = await _read_params(call)
    request_id = await call.services.intake.submit(params, call.key.key_id)
    return answer(submitted_body(call.links(request_id)), headers=_ignored_header(ignored))


@router.post(
    f"/v1/{MODEL}",
    response_class=Response,
    responses={
        200: {**VIDEO_BYTES, "headers": RESULT_HEADERS | IGNORED_HEADER},
        422: FAILED,
        **errors(400, 401, 403, 406, 413, 429, 500, 502, 504),
    },
    openapi_extra=GENERATE_BODY,
)
async def generate(request: Request) -> Response:
    """Make a video and answer with it. Blocks until it is ready."""
    call = Call.of(request)
    params, ignored = await _read_params(call)
    intake = call.services.intake
    request_id = await intake.submit(params, call.key.key_id, needs_worker=True)
    request.state.request_id = request_id  # from here on, errors tell it: the job runs
    await call.services.watch.until_ended(request_id, call.services.settings.v1_seconds)
    job = await intake.find(request_id, call.key.key_id)
    if job.status is Status.FAILED:
        return answer(failed_body(job), 422, {"x-request-id": request_id})
    headers = {**_result_headers(job), **_ignored_header(ignored)}
    return await video_response(call.services.outputs, job, headers)


async def _read_params(call: Call) -> tuple[GenerateParams, list[str]]:
    call.key.require(Scope.GENERATE)
    body = await read_object(call.request, call.services.settings.body_bytes)
    params, ignored = parse_params(body)
    return params.with_seed(_seeds), ignored


def _result_headers(job: Job) -> dict[str, str]:
    return {
        "x-request-id": job.request_id,
        "x-generation-time": f"{job.inference_seconds:.3f}",
        "x-seed-value": str(job.params.seed),
        "x-cost": f"{COST:g}",
        "x-remaining-credits": f"{UNMETERED_CREDITS:.0f}",
    }


def _ignored_header(names: Iterable[str]) -> dict[str, str]:
    """Names that mean nothing to us, quoted: they come from the client and go into a header."""
    quoted = [quote(name[:MOST_NAME_LENGTH], errors="replace") for name in names]
    if not quoted:
        return {}
    return {"x-ignored-parameters": ", ".join(quoted[:MOST_IGNORED_NAMES])}
