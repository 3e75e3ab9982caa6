"""The status, result, cancellation and video of a request."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.request.params import STILLS
from server.api.call import Call
from server.api.links import SIGNED, VIDEO
from server.api.openapi import (
    FAILED,
    NOT_MODIFIED,
    REQUEST_ID,
    STILL_BYTES,
    STILL_RANGE,
    VIDEO_BYTES,
    VIDEO_RANGE,
    errors,
)
from server.api.schemas import CancelBody, ResultBody, StatusBody, failed_body
from server.api.videos.file import still_response, video_response
from server.keys.lookup import Scope
from server.paths import GIF_PATH, STILL_PATH, VIDEO_PATH, WEBM_PATH
from server.transport.parameters import Choice, Flag, documented
from server.transport.responses import answer
from worker.errors import RequestNotFoundError
from worker.job import Cancellation, Job, Status

PREVIEW = Flag(
    name="preview",
    description="`true` or `1`: include the latest preview picture, if there is one.",
)
STILL = Choice(
    name="still",
    place="path",
    is_required=True,
    description="The parameter that asked for it.",
    choices=STILLS,
)
_CANCEL: dict[str, Any] = {
    "status_code": 202,
    "responses": {
        200: {"model": CancelBody, "description": "The request had ended before"},
        **errors(401, 403, 404, 500, 502),
    },
    "openapi_extra": {"parameters": documented(REQUEST_ID)},
}
_RESULT: dict[str, Any] = {
    "response_model": ResultBody | StatusBody,
    "responses": {422: FAILED, **errors(401, 403, 404, 500, 502)},
    "openapi_extra": {"parameters": documented(REQUEST_ID)},
}
_VIDEO: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: VIDEO_BYTES,
        206: VIDEO_RANGE,
        304: NOT_MODIFIED,
        **errors(400, 404, 416, 500, 502),
    },
    "openapi_extra": {"security": [], "parameters": documented(REQUEST_ID, SIGNED)},
}

router = APIRouter(tags=["Requests"])
_log = structlog.get_logger()


@router.get(
    "/v2/requests/{request_id}/status",
    response_model=StatusBody,
    responses={422: FAILED, **errors(400, 401, 403, 404, 500, 502)},
    openapi_extra={"parameters": documented(REQUEST_ID, PREVIEW)},
)
async def get_status(request: Request) -> Response:
    """The status of a request: light, made for polling."""
    call = Call.of(request)
    with_preview = PREVIEW.read(request)
    job = await call.find_job()
    if job.status is Status.FAILED:
        return answer(failed_body(job), 422)
    return answer(await call.status_body(job, with_preview=with_preview))


@router.get("/v2/requests/{request_id}", **_RESULT)
@router.get("/v1/requests/{request_id}", name="poll_result", **_RESULT)
async def get_result(request: Request) -> Response:
    """The result of a COMPLETED request, the status before."""
    call = Call.of(request)
    job = await call.find_job()
    match job.status:
        case Status.FAILED:
            return answer(failed_body(job), 422)
        case Status.COMPLETED:
            return answer(await call.result_body(job))
        case _:
            return answer(await call.status_body(job))


@router.put("/v2/requests/{request_id}/cancel", response_model=CancelBody, **_CANCEL)
@router.delete(
    "/v2/requests/{request_id}", name="delete_request", response_model=CancelBody, **_CANCEL
)
async def cancel_request(request: Request) -> Response:
    """Cancel a request: it ends FAILED as `cancelled`, at its next step. Idempotent."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    outcome = await call.services.store.cancel(call.request_id, call.key.key_id)
    _log.info(
        "request.cancelled",
        request_id=call.request_id,
        key_id=call.key.key_id,
        outcome=outcome.value,
    )
    if outcome is Cancellation.ENDED:
        return answer(CancelBody(status="ALREADY_COMPLETED", request_id=call.request_id))
    return answer(CancelBody(status="CANCELLATION_REQUESTED", request_id=call.request_id), 202)


@router.get(GIF_PATH, name="download_gif", **_VIDEO)
@router.get(WEBM_PATH, name="download_webm", **_VIDEO)
@router.get(VIDEO_PATH, **_VIDEO)
async def download_video(request: Request) -> Response:
    """The video itself, whole or in ranges, by the signed link of a result. Needs no key.

    Links have the signature before the name, `/v2/videos/SIGNATURE/ID.mp4`, which is the same as
    `?signature=SIGNATURE`.
    """
    call = Call.of(request)
    job = await _signed_result(call)
    return await video_response(call.services, job, _kept(call, job), request)


@router.get(
    STILL_PATH,
    response_class=Response,
    responses={
        200: STILL_BYTES,
        206: STILL_RANGE,
        304: NOT_MODIFIED,
        **errors(400, 404, 416, 500, 502),
    },
    openapi_extra={"security": [], "parameters": documented(REQUEST_ID, STILL, SIGNED)},
)
async def download_still(request: Request) -> Response:
    """A picture beside the video, as the video itself."""
    call = Call.of(request)
    job = await _signed_result(call)
    still = next((each for each in STILLS if each == request.path_params["still"]), None)
    if still is None:
        raise RequestNotFoundError(job.request_id)
    return await still_response(call.services, job, still, _kept(call, job), request)


async def _signed_result(call: Call) -> Job:
    job = await call.find_signed_job(VIDEO, SIGNED.read(call.request))
    if job.status is not Status.COMPLETED:
        raise RequestNotFoundError(job.request_id)
    return job


def _kept(call: Call, job: Job) -> dict[str, str]:
    """A player may cache a file, but not for longer than it is kept here."""
    seconds = call.services.video_links.seconds_left(job)
    return {"cache-control": f"private, max-age={seconds:.0f}"}
