"""Response bodies, on the wire and in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.request.params import STILL_TYPE, Still, VideoType
from server.api.links import Links
from server.keys.times import from_ms
from server.transport.error_body import absent_when_none
from worker.billing import from_millionths
from worker.job import Job, Stage, Status
from worker.outputs.base import ending_of, media_type, still_name

NO_STILLS: Mapping[Still, str] = MappingProxyType({})
UNLIMITED = Decimal(1_000_000_000)
"""The balance shown for a key without a limit: clients compare it with a price."""


class Metrics(BaseModel):
    """Seconds and credits of an ended request; empty before."""

    inference_time: float | None = absent_when_none("Seconds of the run.")
    queue_time: float | None = absent_when_none("Seconds before the run.")
    total_time: float | None = absent_when_none("Seconds from submit to end.")
    cost: float | None = absent_when_none("Credits; absent on failure.")
    remaining_credits: float | None = absent_when_none("Absent on failure.")
    retry_count: int | None = absent_when_none("Only when there was a retry.")
    energy_joules: float | None = absent_when_none(
        "Joules that the GPUs used for the run that made the video; absent where they do not count."
    )
    cached: Literal[True] | None = absent_when_none(
        "The result cache had the video, or its frames: no GPU has worked for this request."
    )


class SubmittedRequest(BaseModel):
    """One of several requests that were accepted together."""

    request_id: str
    seed: int
    poll_url: str
    status_url: str
    response_url: str


class SubmittedBody(BaseModel):
    """A request was accepted. A replay gets the same body."""

    request_id: str
    status: Literal[Status.QUEUED] = Status.QUEUED
    poll_url: str
    status_url: str
    response_url: str
    requests: list[SubmittedRequest] | None = absent_when_none(
        "With `count`: all requests; the first is that of the other fields."
    )


_EXPIRES = "When request and video expire; after the end."


class StatusBody(BaseModel):
    """The status of a request."""

    status: Literal[Status.QUEUED, Status.PROCESSING, Status.COMPLETED]
    request_id: str
    status_url: str
    response_url: str
    metrics: Metrics
    progress: int = Field(ge=0, le=100, description="Percentage of the run's time.")
    queue_position: int | None = absent_when_none("While QUEUED; 1 is next.")
    stage: Stage | None = absent_when_none("Stage of the run; until the end.")
    step: int = Field(description="Denoising steps done in the present run.")
    total_steps: int = Field(description="Of the run; of a draft its `draft_steps`.")
    eta_seconds: float | None = absent_when_none(
        "Estimated seconds until the end, from the work ahead and the pace of recent runs; absent "
        "while unknown."
    )
    attempt: int = Field(description="Number of runs started.")
    cancel_url: str | None = absent_when_none("Cancels, with PUT; until the end.")
    events_url: str | None = absent_when_none("Server-sent events; until the end.")
    expires_at: datetime | None = absent_when_none(_EXPIRES)
    preview: str | None = absent_when_none(
        "A small picture of the unfinished video as a data URL, updated every few steps. In "
        "events, and in the status with `preview=true`."
    )
    warnings: list[str] | None = absent_when_none("As in the result; only after the end.")


class CancelBody(BaseModel):
    """The outcome of a cancellation."""

    status: Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]
    request_id: str


class FailedBody(BaseModel):
    """A request ended without a video. Nothing is charged."""

    status: Literal[Status.FAILED] = Status.FAILED
    request_id: str
    error: str
    error_code: str = Field(
        description="Machine-readable, such as `out_of_memory` or `content_blocked`."
    )
    metrics: Metrics
    expires_at: datetime | None = absent_when_none(_EXPIRES)


class Video(BaseModel):
    """The file behind a result."""

    url: str
    content_type: VideoType = "video/mp4"
    file_name: str
    file_size: int = Field(description="Bytes.")


class StillFile(BaseModel):
    """A picture beside the video. As the video, it needs no header and expires with the result."""

    url: str
    content_type: Literal["image/jpeg"] = STILL_TYPE
    file_name: str
    file_size: int = Field(description="Bytes.")


class DraftBody(BaseModel):
    """The video is an estimate, of the first steps alone."""

    steps: int = Field(description="The `draft_steps` that were run.")
    total_steps: int = Field(description="The `steps` of the finished video.")
    finish_url: str = Field(description="Makes the finished video, with POST, from here on.")


class ResultBody(BaseModel):
    """A video is ready."""

    status: Literal[Status.COMPLETED] = Status.COMPLETED
    request_id: str
    error: None = None
    output: str = Field(description="URL of the video; needs no header, expires with the result.")
    video: Video
    poster: StillFile | None = absent_when_none("The middle frame, if `poster` asked for it.")
    last_frame: StillFile | None = absent_when_none("The last frame, if `last_frame` asked for it.")
    seed: int = Field(description="The seed of the video.")
    prompt: str
    draft: DraftBody | None = absent_when_none("Of a draft only.")
    metrics: Metrics
    precision: str | None = absent_when_none(
        "Numeric precision of the model, such as `bf16`; absent if no model ran."
    )
    warnings: list[str] = Field(
        description="Notes on the video, such as that the prompt was cut; usually none."
    )
    expires_at: datetime | None = absent_when_none(_EXPIRES)


class WebhookBody(BaseModel):
    """The body that a `webhook_url` receives when a request has ended."""

    type: Literal["request.completed", "request.failed"]
    timestamp: datetime = Field(description="The end of the request.")
    data: ResultBody | FailedBody = Field(
        description="The body of `GET /v2/requests/{request_id}`."
    )


class BudgetData(BaseModel):
    """The monthly cap of a key, and what of it is spent. Amounts are credits."""

    key_id: str
    month: str = Field(description="Like 2026-11, in UTC.")
    month_ends_at: datetime
    percent: Literal[80, 100] = Field(
        description="80, or 100 where what is left covers no further request like the last one."
    )
    monthly_cap: float
    charged: float = Field(description="In the month so far.")


class BudgetBody(BaseModel):
    """The body that a standing webhook receives when a key has spent a share of its monthly cap."""

    type: Literal["budget.warning", "budget.reached"] = Field(
        description="At 80 per cent of the cap, and when it is spent."
    )
    timestamp: datetime = Field(description="The charge that has come to the share.")
    data: BudgetData


class HealthBody(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


WorkersState = Literal["ready", "paused", "loading", "none", "unknown"]


class ReadyBody(BaseModel):
    """Whether a request would be run now, and what is missing if not."""

    status: Literal["ready", "no worker", "not ready"] = Field(
        description="`no worker`: the gateway can serve, and requests wait for a worker. "
        "`not ready`: the gateway cannot serve."
    )
    workers: WorkersState = Field(
        description="`ready`: one takes requests. `loading`: one is loading the model. `unknown`: "
        "the broker does not answer, or cannot be used."
    )
    live_workers: int
    missing: list[str]


class EngineBody(BaseModel):
    """The engine of a live worker. Without its host, as the route is public."""

    model_config = ConfigDict(from_attributes=True)

    model: str = Field(description="Name of the weights.")
    device: str = Field(description="Name of the card, or `CPU`.")
    precision: str = Field(description="As in a result; `none` without a model.")
    profile: str = Field(description="Memory profile; empty on a CPU.")
    lossy: list[str] = Field(description="Lossy speed modes that are on.")
    is_mock: bool = Field(description="Without real weights; then `x-mock-scenario` works.")
    gpus: int = Field(description="Cards that share each video.")


class VersionBody(BaseModel):
    """The version and the engines."""

    version: str = Field(
        description="Of a release, such as 0.2.0, or of development: 0.2.0.dev12+g0123abcde."
    )
    commit: str | None = Field(description="40 hexadecimal digits; null if the build knows none.")
    dirty: bool | None = Field(
        description="Whether its source differed from the commit; null if that is not known."
    )
    model: str = Field(description="The default model.")
    models: list[str] = Field(description="All that clients may ask for.")
    engines: list[EngineBody] = Field(
        description="One for each live worker; none while the broker does not answer."
    )
    loras: list[str] | None = absent_when_none(
        "Names of LoRAs that requests may have as `lora`; absent without any."
    )
    link_origins: list[str] = Field(
        description="Scheme and host of links in responses, where they are not the caller's: "
        "MOCHI_PUBLIC_URL, and the S3 store of videos."
    )


def submitted_body(links: Links, requests: list[SubmittedRequest] | None = None) -> SubmittedBody:
    return SubmittedBody(
        request_id=links.request_id,
        poll_url=links.poll,
        status_url=links.status,
        response_url=links.response,
        requests=requests,
    )


def submitted_requests(first: Job, base: str) -> list[SubmittedRequest]:
    """All requests that were submitted with the first one, for the host `base`."""
    every = [Links(base, request_id) for request_id in (first.request_id, *first.siblings.split())]
    return [
        SubmittedRequest(
            request_id=links.request_id,
            seed=seed,
            poll_url=links.poll,
            status_url=links.status,
            response_url=links.response,
        )
        for seed, links in enumerate(every, start=first.params.seed)
    ]


def status_body(
    job: Job,
    links: Links,
    events_url: str | None = None,
    eta_seconds: float | None = None,
    preview: str | None = None,
) -> StatusBody:
    """The status of a request that has not failed."""
    is_final = job.status.is_final
    return StatusBody(
        status=job.status,
        request_id=job.request_id,
        status_url=links.status,
        response_url=links.response,
        metrics=metrics(job),
        progress=job.progress,
        queue_position=job.position,
        stage=None if is_final else job.stage,
        step=job.last_step if is_final else job.step,
        total_steps=job.last_step,
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 1),
        attempt=job.attempt,
        cancel_url=None if is_final else links.cancel,
        events_url=events_url,
        expires_at=expires_at(job),
        preview=preview,
        warnings=job.warnings if is_final else None,
    )


def failed_body(job: Job) -> FailedBody:
    """The response for a failed request, on every route but /v1/videos."""
    return FailedBody(
        request_id=job.request_id,
        error=job.error,
        error_code=job.error_code,
        metrics=metrics(job),
        expires_at=expires_at(job),
    )


def result_body(
    job: Job, links: Links, url: str, stills: Mapping[Still, str] = NO_STILLS
) -> ResultBody:
    """The result of a COMPLETED request whose video is at `url`, and its stills at theirs."""
    return ResultBody(
        request_id=job.request_id,
        output=url,
        video=Video(
            url=url,
            content_type=media_type(job.file_name),
            file_name=job.request_id + ending_of(job.file_name),
            file_size=job.file_size,
        ),
        poster=_still_file(job, "poster", stills),
        last_frame=_still_file(job, "last_frame", stills),
        seed=job.params.seed,
        prompt=job.params.prompt,
        draft=_draft_body(job, links) if job.draft_steps else None,
        metrics=metrics(job),
        precision=None if job.precision in {"", "none"} else job.precision,
        warnings=job.warnings,
        expires_at=expires_at(job),
    )


def _still_file(job: Job, still: Still, urls: Mapping[Still, str]) -> StillFile | None:
    if still not in urls:
        return None
    name = job.request_id + ending_of(still_name(job.file_name, still))
    return StillFile(url=urls[still], file_name=name, file_size=job.stills[still])


def _draft_body(job: Job, links: Links) -> DraftBody:
    return DraftBody(steps=job.draft_steps, total_steps=job.params.steps, finish_url=links.finish)


def expires_at(job: Job) -> datetime | None:
    """When the record expires, by the broker's clock."""
    return None if job.expires_at is None else from_ms(job.expires_at)


def cost(job: Job) -> Decimal:
    return from_millionths(job.cost)


def remaining(job: Job) -> Decimal:
    """Credits that the key had left after it."""
    return UNLIMITED if job.remaining is None else from_millionths(job.remaining)


def metrics(job: Job) -> Metrics:
    """Empty until the request has ended."""
    if not job.status.is_final:
        return Metrics()
    completed = job.status is Status.COMPLETED
    return Metrics(
        inference_time=job.inference_seconds,
        queue_time=job.queue_seconds,
        total_time=job.total_seconds,
        cost=float(cost(job)) if completed else None,
        remaining_credits=float(remaining(job)) if completed else None,
        retry_count=job.retries or None,
        energy_joules=None if job.energy_mj is None else job.energy_mj / 1000,
        cached=True if job.cached else None,
    )
