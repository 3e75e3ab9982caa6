"""Responds with a video or a still, whole or one byte range, from the output store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from models.request.params import STILL_TYPE, Still
from server.api.services import Services
from server.errors import NoStillError, RangeError
from server.transport.responses import not_modified
from worker.errors import StorageError, VideoGoneError
from worker.job import Job
from worker.outputs.base import media_type, request_of, still_name

_ONE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-(?!0+$)([0-9]{1,18}))")

_log = structlog.get_logger()


async def video_response(
    services: Services, job: Job, headers: dict[str, str], request: Request | None = None
) -> Response:
    """The video of a COMPLETED request, or the range of it that `request` asks for.

    The response begins when the first bytes have been read. It breaks off if the store fails.

    Raises:
        RangeError: the range starts beyond the end.
        StorageError: the video cannot be read.
        BrokerUnavailableError: its file is gone, and the result cache cannot be told.
    """
    file = _File(job.file_name, job.file_size, media_type(job.file_name))
    return await _response(services, job, file, headers, request)


async def still_response(
    services: Services, job: Job, still: Still, headers: dict[str, str], request: Request
) -> Response:
    """A still of the request, as `video_response`. Raises NoStillError if it has none."""
    if still not in job.stills:
        is_asked = getattr(job.request, still)
        raise NoStillError(job.request_id, still, is_asked=is_asked)
    file = _File(still_name(job.file_name, still), job.stills[still], STILL_TYPE)
    return await _response(services, job, file, headers, request)


@dataclass(frozen=True)
class _File:
    """A file in the output store: its name there, its size in bytes, its media type."""

    name: str
    size: int
    media_type: str


async def _response(
    services: Services, job: Job, file: _File, headers: dict[str, str], request: Request | None
) -> Response:
    size = file.size
    ended = formatdate((job.ended_at or 0) / 1000, usegmt=True)
    # Names are never reused, so the name is the ETag; of a cached video with the request's own id.
    etag = file.name.replace(request_of(file.name) or "", job.request_id, 1)
    validators = {"etag": f'"{etag}"', "last-modified": ended}
    headers = {"accept-ranges": "bytes", **validators, **headers}
    if request is not None and (unchanged := not_modified(request, headers)):
        return unchanged
    asked = _asked_range(request, headers, size) if request is not None else None
    start, stop = asked or (0, size)
    # Reading blocks, so it is done in threads, chunk by chunk.
    try:
        chunks = await run_in_threadpool(services.outputs.read, file.name, start, stop)
    except StorageError as error:
        _log.error("video.unreadable", request_id=job.request_id, reason=str(error))
        if isinstance(error, VideoGoneError):
            await services.store.forget_maker(request_of(file.name) or job.request_id, job.request)
        raise
    headers["content-length"] = str(stop - start)
    status = HTTPStatus.OK
    if asked:
        status = HTTPStatus.PARTIAL_CONTENT
        headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    return StreamingResponse(chunks, status, headers, file.media_type)


def _asked_range(request: Request, validators: dict[str, str], size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole video.

    A range that is not supported is ignored (RFC 9110, section 14.2).
    """
    match = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if_range = request.headers.get("if-range")
    is_current = if_range in {None, validators["etag"], validators["last-modified"]}
    if match is None or not is_current:
        return None
    first, last, suffix = (int(text) if text else None for text in match.groups())
    if first is None:
        return max(0, size - (suffix or 0)), size
    if last is not None and last < first:
        return None
    if first >= size:
        raise RangeError(size)
    return first, size if last is None else min(last + 1, size)
