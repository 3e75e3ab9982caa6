"""The same requests in the shape of the OpenAI videos API, which other video servers share."""

from __future__ import annotations

from functools import partial

import structlog
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from models.request.params import MODEL
from server.api.call import Call
from server.api.openapi import (
    CONTENT_BYTES,
    CONTENT_RANGE,
    NOT_MODIFIED,
    REQUEST_ID,
    SUBMIT_HEADERS,
    VIDEO_BODY,
    errors,
)
from server.api.submit.submission import (
    IDEMPOTENCY_KEY,
    MOCK_SCENARIO,
    OPTIONAL,
    WEBHOOK_URL,
    Submission,
)
from server.api.videos.file import still_response, video_response
from server.api.videos.object import (
    OTHERS,
    DeletedVideo,
    VideoObject,
    VideoPage,
    to_parameters,
    video_object,
    video_page,
)
from server.errors import VideoNotReadyError
from server.keys.lookup import Scope
from server.paths import VIDEOS_PATH
from server.transport.body import read_fields
from server.transport.error_body import VideosErrorBody
from server.transport.parameters import Choice, Text, WholeNumber, documented
from server.transport.responses import answer
from worker.job import Status

LIMIT = WholeNumber(name="limit", description="The size of a page.", least=1, most=100, default=20)
AFTER = Text(name="after", description="The `last_id` of the previous page.")
ORDER = Choice(
    name="order", description="By time of submission.", choices=("asc", "desc"), default="desc"
)
_THUMBNAIL = "thumbnail"
VARIANT = Choice(
    name="variant",
    description="The video, or the poster of a request that has one.",
    choices=("video", _THUMBNAIL),
    default="video",
)
_errors = partial(errors, body=VideosErrorBody)
_ONE = {"parameters": documented(REQUEST_ID)}

router = APIRouter(tags=["Videos"])
_log = structlog.get_logger()


@router.post(
    VIDEOS_PATH,
    response_model=VideoObject,
    responses={
        200: {"headers": SUBMIT_HEADERS},
        **_errors(400, 401, 402, 403, 404, 406, 409, 413, 415, 429, 500, 502),
    },
    openapi_extra={
        "parameters": documented(IDEMPOTENCY_KEY, WEBHOOK_URL, MOCK_SCENARIO),
        "requestBody": VIDEO_BODY,
    },
)
async def create_video(request: Request) -> Response:
    """Queue a video, and answer with an object to poll. Takes JSON or a form."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)  # before the body is read
    fields = await read_fields(request, call.services.settings.body_bytes, OPTIONAL | OTHERS)
    model = call.require_submit(fields.get("model", MODEL))
    submission = await Submission.read(call, fields, to_parameters(fields, model), model=model)
    accepted = await submission.accept()
    request.state.request_id = accepted.request_id  # later errors name it
    job = await call.services.store.find(accepted.request_id, call.key.key_id)
    return answer(video_object(job), headers=submission.headers(accepted))


@router.get(
    VIDEOS_PATH,
    response_model=VideoPage,
    responses=_errors(400, 401, 403, 404, 500, 502),
    openapi_extra={"parameters": documented(LIMIT, AFTER, ORDER)},
)
async def list_videos(request: Request) -> Response:
    """The key's kept requests, the newest first."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    page = await call.services.store.page_of(
        call.key.key_id,
        most=LIMIT.read(request),
        after=AFTER.read(request),
        is_ascending=ORDER.read(request) == "asc",
    )
    return answer(video_page(page))


@router.get(
    VIDEOS_PATH + "/{request_id}",
    response_model=VideoObject,
    responses=_errors(401, 403, 404, 500, 502),
    openapi_extra=_ONE,
)
async def get_video(request: Request) -> Response:
    """The state of a request. A failed one is 200 here, with its `error`."""
    call = Call.of(request)
    return answer(video_object(await call.find_job()))


@router.get(
    VIDEOS_PATH + "/{request_id}/content",
    response_class=Response,
    responses={
        200: CONTENT_BYTES,
        206: CONTENT_RANGE,
        304: NOT_MODIFIED,
        **_errors(400, 401, 403, 404, 416, 500, 502),
    },
    openapi_extra={"parameters": documented(REQUEST_ID, VARIANT)},
)
async def get_video_content(request: Request) -> Response:
    """The video itself, or its poster, whole or in ranges."""
    call = Call.of(request)
    variant = VARIANT.read(request)
    job = await call.find_job()
    if job.status is not Status.COMPLETED:
        raise VideoNotReadyError(job.request_id, job.error)
    if variant == _THUMBNAIL:
        return await still_response(call.services, job, "poster", {}, request)
    return await video_response(call.services, job, {}, request)


@router.delete(
    VIDEOS_PATH + "/{request_id}",
    response_model=DeletedVideo,
    responses=_errors(401, 403, 404, 500, 502),
    openapi_extra=_ONE,
)
async def delete_video(request: Request) -> Response:
    """Delete a request and its video at once; a request that has not ended is cancelled."""
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    file_name = await call.services.store.delete(call.request_id, call.key.key_id)
    _log.info("request.deleted", request_id=call.request_id, key_id=call.key.key_id)
    if file_name:  # after a crash here the sweeper removes it
        await run_in_threadpool(_remove_files, call, file_name)
    return answer(DeletedVideo(id=call.request_id))


def _remove_files(call: Call, file_name: str) -> None:
    """Of a deleted request: its video, and what a draft keeps besides."""
    call.services.outputs.remove(file_name)
    call.services.outputs.remove_checkpoint(call.request_id)
