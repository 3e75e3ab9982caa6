"""The status, result, cancellation and video of a request."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.links import SIGNED, VIDEO
from server.api.openapi import FAILED, REQUEST_ID, VIDEO_BYTES, VIDEO_RANGE, errors
from server.api.schemas import CancelBody, ResultBody, StatusBody, failed_body
from server.api.videos.file import video_response
from server.keys.lookup import Scope
from server.paths import VIDEO_PATH
from server.transport.parameters import Flag, documented
from server.transport.responses import answer
from worker.errors import RequestNotFoundError
from worker.job import Cancellation, Status

PREVIEW = Flag(
    name="preview",
    description="`true` or `1`: include the latest preview picture, if there is one.",
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


@router.get(
    VIDEO_PATH,
    response_class=Response,
    responses={200: VIDEO_BYTES, 206: VIDEO_RANGE, **errors(400, 404, 416, 500, 502)},
    openapi_extra={"security": [], "parameters": documented(REQUEST_ID, SIGNED)},
)
async def download_video(request: Request) -> Response:
    """The video itself, whole or in ranges. Needs no key: the link is signed.

    Links have the signature before the name, `/v2/videos/SIGNATURE/ID.mp4`, which is the same.
    """
    call = Call.of(request)
    job = await call.find_signed_job(VIDEO, SIGNED.read(request))
    if job.status is not Status.COMPLETED:
        raise RequestNotFoundError(job.request_id)
    # A player may cache the video, but not for longer than it is kept here.
    kept = {"cache-control": f"private, max-age={call.services.video_links.seconds_left(job):.0f}"}
    return await video_response(call.services.outputs, job, kept, request)
