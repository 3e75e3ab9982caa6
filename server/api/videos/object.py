"""Reads and shows requests in the shape of the OpenAI videos API; see `routes/videos.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from models.errors import InvalidParametersError
from models.request.catalogue import MOCHI, Model
from models.request.params import (
    ALIASES,
    HEIGHT,
    WIDTH,
    GenerateParams,
    number_of_text,
    parse_params,
)
from server.transport.body import NO_FILE
from worker.job import Job, Status
from worker.store.gateway_side import Page

SIZE = f"{WIDTH}x{HEIGHT}"
"""Of every video."""
OTHERS = frozenset(ALIASES) | {"model", "size", "seconds"}
"""Fields that other servers have."""
_FAR = 10**9
_FRAMES: dict[str, Any] = GenerateParams.model_json_schema()["properties"]["frames"]


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
    model: str
    status: VideoStatus
    progress: int = Field(ge=0, le=100, description="Percentage of the run's time.")
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
        model=job.model,
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


def to_parameters(fields: dict[str, Any], model: Model = MOCHI) -> dict[str, Any]:
    """Translate to the parameters of the model: `seconds` become `frames`, `model` and `size` go.

    Names of other servers are taken, too; see `ALIASES`.

    Raises:
        InvalidParametersError: a field is wrong.
    """
    if fields.get("size", SIZE) != SIZE:
        raise InvalidParametersError(f"`size` must be {SIZE}: Mochi 1 makes no other size.")
    if "input_reference" in fields:
        raise InvalidParametersError(NO_FILE)
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
    fps = parse_params(parameters, model.request)[0].fps
    return {**parameters, "frames": _frames(seconds, fps)}


def seconds_of(params: GenerateParams) -> str:
    return f"{params.frames / params.fps:.6g}"


def _as_number(given: object) -> float:
    value = number_of_text(given)
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
