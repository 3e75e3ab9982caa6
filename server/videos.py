"""Serves a video file, whole or one range of it."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from server.errors import RangeError
from server.schemas import VIDEO_TYPE

_ONE_RANGE = re.compile(rb"bytes=(\d{1,18})-(\d{0,18})|bytes=-(?!0+$)\d{1,18}")


class _VideoResponse(FileResponse):
    """Leaves out a Range header that we do not serve, as RFC 9110 section 14.2 wants it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"range" or (scope["method"] == "GET" and _is_valid(value))
        ]
        await super().__call__({**scope, "headers": headers}, receive, send)


def video_response(
    path: Path, headers: dict[str, str], request: Request | None = None
) -> FileResponse:
    """The file, or the range of it that `request` asks for.

    Raises:
        RangeError: the range starts beyond the end.
    """
    if request is not None and request.method == "GET":
        _check_range(request.headers.get("range", "").encode("latin-1"), path.stat().st_size)
    return _VideoResponse(path, media_type=VIDEO_TYPE, headers=headers)


def _check_range(value: bytes, size: int) -> None:
    match = _ONE_RANGE.fullmatch(value)
    if match and _is_valid(value) and match[1] is not None and int(match[1]) >= size:
        raise RangeError(size)


def _is_valid(value: bytes) -> bool:
    match = _ONE_RANGE.fullmatch(value)
    if match is None:
        return False
    first, last = match[1], match[2]
    return not (first and last) or int(first) <= int(last)
