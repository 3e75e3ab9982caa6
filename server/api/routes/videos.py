"""The same requests in the shape that self-hosted video servers share, such as for `openai`."""

from __future__ import annotations

import re
from functools import partial

import structlog
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.openapi import (
    IGNORED_HEADER,
    PAGE,
    RATE_HEADERS,
    REPLAYED_HEADER,
    REQUEST_ID,
    VARIANT,
    VIDEO_BYTES,
    VIDEO_RANGE,
    VIDEOS_REQUEST,
    errors,
)
from server.api.routes.generate import accept
from server.api.routes.video_file import video_response
from server.api.video_object import (
    DeletedVideo,
    VideoObject,
    VideoPage,
    read_fields,
    to_parameters,
    video_object,
    video_page,
)
from server.errors import BadQueryError, VideoNotReadyError
from server.keys.lookup import Scope
from server.paths import VIDEOS_PATH
from server.transport.error_body import VideosErrorBody
from server.transport.responses import answer
from worker.job import Job, Status

MOST_IN_PAGE = 100
_errors = partial(errors, body=VideosErrorBody)
_ONE = {"parameters": [REQUEST_ID]}

router = APIRouter(tags=["Videos, as other servers have them"])
_log = structlog.get_logger()


@router.post(
    VIDEOS_PATH,
    response_model=VideoObject,
    responses={
        200: {"headers": IGNORED_HEADER | REPLAYED_HEADER | RATE_HEADERS},
        **_errors(400, 401, 403, 404, 406, 409, 413, 429, 500, 502),
    },
    openapi_extra=VIDEOS_REQUEST,
)
async def create_video(request: Request) -> Response:
    """Queue a video, and answer with an object to poll. Takes JSON or a form."""
    call = Call.of(request)
    asked = await accept(call, read=read_fields, translate=to_parameters)
    request.state.request_id = asked.request_id  # from here on, errors tell it
    job = await call.services.intake.find(asked.request_id, call.key.key_id)
    return answer(video_object(job), headers=asked.headers)


@router.get(
    VIDEOS_PATH,
    response_model=VideoPage,
    responses=_errors(400, 401, 403, 404, 500, 502),
    openapi_extra={"parameters": PAGE},
)
async def list_videos(request: Request) -> Response:
    """The key's requests that are kept, the newest first."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    query = request.query_params
    page = await call.services.intake.page_of(
        call.key.key_id,
        most=_limit(query.get("limit", "20")),
        after=query.get("after", ""),
        is_ascending=_is_ascending(query.get("order", "desc")),
    )
    return answer(video_page(page))


@router.get(
    VIDEOS_PATH + "/{request_id}",
    response_model=VideoObject,
    responses=_errors(401, 403, 404, 500, 502),
    openapi_extra=_ONE,
)
async def get_video(request: Request) -> Response:
    """Where a request stands. One that failed is 200 here, with its `error`."""
    call = Call.of(request)
    return answer(video_object(await _find(call)))


@router.get(
    VIDEOS_PATH + "/{request_id}/content",
    response_class=Response,
    responses={
        200: VIDEO_BYTES,
        206: VIDEO_RANGE,
        **_errors(400, 401, 403, 404, 416, 500, 502),
    },
    openapi_extra={"parameters": [REQUEST_ID, VARIANT]},
)
async def get_content(request: Request) -> Response:
    """The video itself, whole or in ranges."""
    call = Call.of(request)
    if request.query_params.get("variant", "video") != "video":
        raise BadQueryError("`variant` must be `video`: there is nothing else.")
    job = await _find(call)
    if job.status is not Status.COMPLETED:
        raise VideoNotReadyError(job.request_id, job.error)
    return await video_response(call.services.outputs, job, {}, request)


@router.delete(
    VIDEOS_PATH + "/{request_id}",
    response_model=DeletedVideo,
    responses=_errors(401, 403, 404, 500, 502),
    openapi_extra=_ONE,
)
async def delete_video(request: Request) -> Response:
    """Forget a request and its video at once; one that waits or runs is cancelled."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    file_name = await call.services.intake.delete(call.request_id, call.key.key_id)
    _log.info("request.deleted", request_id=call.request_id, key_id=call.key.key_id)
    if file_name:  # should we die here, it is swept later
        await run_in_threadpool(call.services.outputs.remove, file_name)
    return answer(DeletedVideo(id=call.request_id))


async def _find(call: Call) -> Job:
    call.key.require(Scope.READ)
    return await call.services.intake.find(call.request_id, call.key.key_id)


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_IN_PAGE:
        raise BadQueryError(f"`limit` must be a whole number from 1 to {MOST_IN_PAGE}.")
    return int(text)


def _is_ascending(text: str) -> bool:
    if text not in {"asc", "desc"}:
        raise BadQueryError("`order` must be `asc` or `desc`.")
    return text == "asc"
