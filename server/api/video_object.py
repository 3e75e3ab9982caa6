"""Reads and shows requests in the shape of the OpenAI videos API; see `routes/videos.py`."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any, Literal

from pydantic import BaseModel, Field
from python_multipart.exceptions import MultipartParseError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.errors import InvalidParametersError
from models.params import ALIASES, HEIGHT, MODEL, WIDTH, GenerateParams, parse_params
from server.errors import MalformedBodyError, UnknownRouteError, WrongContentTypeError
from server.transport.body import media_type, read_bytes, read_object
from worker.job import Job, Status
from worker.store.gateway_side import Page

SIZE = f"{WIDTH}x{HEIGHT}"
"""Of every video."""
FORM = "multipart/form-data"
MOST_FIELDS = 100
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_FAR = 10**9
_FRAMES: dict[str, Any] = GenerateParams.model_json_schema()["properties"]["frames"]
_NO_FILE = "`input_reference` is not supported: Mochi 1 makes videos from text. Send no files."


VideoStatus = Literal["queued", "in_progress", "completed", "failed"]
_STATUS: dict[Status, VideoStatus] = {
    Status.QUEUED: "queued",
    Status.PROCESSING: "in_progress",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
}


class VideoError(BaseModel):
    """Why there is no video."""

    code: str = Field(description="As `error_code` elsewhere.")
    message: str


class VideoObject(BaseModel):
    """One request. Times are seconds since 1970."""

    id: str = Field(description="The id of the request, valid on all other routes.")
    object: Literal["video"] = "video"
    model: Literal["mochi-1"] = MODEL  # type: ignore[assignment]  # it is that text
    status: VideoStatus
    progress: int = Field(ge=0, le=100, description="Percentage of the denoising steps done.")
    created_at: int
    completed_at: int | None = Field(default=None, description="When the video was ready.")
    expires_at: int | None = Field(
        default=None, description="When request and video expire; after the end."
    )
    size: str = SIZE
    seconds: str = Field(description="The duration of the video.")
    prompt: str
    seed: int = Field(description="The seed that is used.")
    error: VideoError | None = Field(default=None, description="When it failed.")


class VideoPage(BaseModel):
    """One page of the key's requests."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None = Field(description="The `after` of the next page.")
    has_more: bool


class DeletedVideo(BaseModel):
    """The video was deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def video_object(job: Job) -> VideoObject:
    ended_at = None if job.ended_at is None else job.ended_at / 1000
    is_failed = job.status is Status.FAILED
    return VideoObject(
        id=job.request_id,
        status=_STATUS[job.status],
        progress=job.progress,
        created_at=job.created_at // 1000,
        completed_at=None if ended_at is None or is_failed else int(ended_at),
        expires_at=None if job.expires_at is None else job.expires_at // 1000,
        seconds=seconds_of(job.params),
        prompt=job.params.prompt,
        seed=job.params.seed,
        error=VideoError(code=job.error_code, message=job.error) if is_failed else None,
    )


def video_page(page: Page) -> VideoPage:
    data = [video_object(job) for job in page.jobs]
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


async def read_fields(request: Request, most_bytes: int) -> dict[str, Any]:
    """Read JSON or a form; the text of a form's field becomes a number where one is expected.

    Raises:
        WrongContentTypeError: the body is declared to be neither JSON nor a form.
        EncodedBodyError: it is compressed.
        BodyTooLargeError: it is longer than `most_bytes`.
        MalformedBodyError: it is not what it is declared to be.
        InvalidParametersError: the form holds a file.
    """
    match media_type(request):
        case "application/json":
            return await read_object(request, most_bytes)
        case "multipart/form-data":
            return await _read_form(request, most_bytes)
    raise WrongContentTypeError(FORM)


def to_parameters(fields: dict[str, Any]) -> dict[str, Any]:
    """Translate to the parameters of the model: `seconds` become `frames`, `model` and `size` go.

    Names of other servers are taken, too; see `ALIASES`.

    Raises:
        InvalidParametersError: a field is wrong.
        UnknownRouteError: the model is unknown.
    """
    if fields.get("model", MODEL) != MODEL:
        raise UnknownRouteError(has_docs=False)
    if fields.get("size", SIZE) != SIZE:
        raise InvalidParametersError(f"`size` must be {SIZE}: Mochi 1 makes no other size.")
    if "input_reference" in fields:
        raise InvalidParametersError(_NO_FILE)
    for alias, name in ALIASES.items():
        if fields.keys() >= {alias, name}:
            raise InvalidParametersError(f"Give `{alias}` or `{name}`, not both.")
    parameters = {
        ALIASES.get(name, name): value
        for name, value in fields.items()
        if name not in {"model", "size"}
    }
    if "seconds" not in parameters:
        return parameters
    seconds = _as_number(parameters.pop("seconds"))
    if "frames" in parameters:
        raise InvalidParametersError("Give `seconds` or `frames`, not both.")
    fps = parse_params(parameters)[0].fps
    return {**parameters, "frames": _frames(seconds, fps)}


def seconds_of(params: GenerateParams) -> str:
    return f"{params.frames / params.fps:.6g}"


async def _read_form(request: Request, most_bytes: int) -> dict[str, Any]:
    body = await read_bytes(request, most_bytes)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, stream(), max_fields=MOST_FIELDS, max_files=1, max_part_size=most_bytes
    )
    try:
        form = await parser.parse()
    except (MultiPartException, MultipartParseError) as error:
        raise MalformedBodyError(f"The body is not a form: {error}") from None
    except (KeyError, ValueError, LookupError, UnicodeError):
        raise MalformedBodyError("The body is not a form.") from None
    items = form.multi_items()
    await form.close()
    if len({name for name, _ in items}) != len(items):
        raise MalformedBodyError("The body names a field twice.")
    return {name: _typed(name, value) for name, value in items}


def _typed(name: str, value: object) -> object:
    """The value of a form's field, which is text or a file."""
    if not isinstance(value, str):
        raise InvalidParametersError(_NO_FILE)
    field = GenerateParams.model_fields.get(ALIASES.get(name, name))
    if field is None or field.annotation is str or not _NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def _as_number(value: object) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FAR:
        return value
    raise InvalidParametersError("`seconds` must be a number of seconds, or one as a string.")


def _frames(seconds: float, fps: float) -> int:
    least, most = _FRAMES["minimum"], _FRAMES["maximum"]
    if least <= seconds * fps <= most:
        return round(seconds * fps)
    raise InvalidParametersError(
        f"`seconds` must be from {least / fps:.4g} to {most / fps:.4g} at {fps:g} frames a second, "
        f"as a video has {least} to {most} frames; got {seconds:g}."
    )
