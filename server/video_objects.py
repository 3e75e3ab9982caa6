"""Requests as other video servers show them: see `routes/videos_api.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from models.params import MODEL
from server.video_fields import SIZE, seconds_of
from worker.intake import Page
from worker.job import Job, Status

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

    id: str = Field(description="The request's id, good on every other route too.")
    object: Literal["video"] = "video"
    model: Literal["mochi-1"] = MODEL  # type: ignore[assignment]  # it is that text
    status: VideoStatus
    progress: int = Field(ge=0, le=100, description="Per cent of the denoising steps.")
    created_at: int
    completed_at: int | None = Field(default=None, description="When the video was ready.")
    expires_at: int | None = Field(
        default=None, description="When it is forgotten, after it has ended."
    )
    size: str = SIZE
    seconds: str = Field(description="How long the video plays.")
    prompt: str
    seed: int = Field(description="The seed that is used.")
    error: VideoError | None = Field(default=None, description="When it failed.")


class VideoPage(BaseModel):
    """Some of the key's requests."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None = Field(description="To be given as `after` for the next page.")
    has_more: bool


class DeletedVideo(BaseModel):
    """It is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def video_object(job: Job) -> VideoObject:
    """A request."""
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
    """One page of a list."""
    data = [video_object(job) for job in page.jobs]
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )
