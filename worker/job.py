"""The job record, the only source of truth for a request's state. No Redis, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from models.request.catalogue import CATALOGUE
from models.request.params import MODEL, STILLS, FileParams, GenerateParams, RequestParams, Still

LORA = "+lora"
"""At the end of the name of a queue: its requests ask for LoRAs."""


def queue_of(params: GenerateParams) -> str:
    """The queue of a request: one for each model, and one for its requests with LoRAs."""
    return params.model + (LORA if params.lora else "")


def model_of(queue: str) -> str:
    """The slug of a queue's model."""
    return queue.removesuffix(LORA)


class Status(StrEnum):
    """All states of a request."""

    QUEUED = "QUEUED"
    """Accepted; waits for its first run or a retry."""
    PROCESSING = "PROCESSING"
    """A worker holds its lease."""
    COMPLETED = "COMPLETED"
    """The video is published. Final."""
    FAILED = "FAILED"
    """Ended without a video; `error` says why. Final."""

    @property
    def is_final(self) -> bool:
        """Whether the status can never change again."""
        return not TRANSITIONS[self]


class Cancellation(StrEnum):
    """What a cancel has done."""

    REQUESTED = "requested"
    """A waiting request has ended FAILED; a running one ends at its next step."""
    ENDED = "ended"
    """It had ended before."""


class Stage(StrEnum):
    """Stages of a request, in their order."""

    QUEUED = "queued"
    ENCODING_PROMPT = "encoding_prompt"
    """Includes moderation of the prompt."""
    DENOISING = "denoising"
    DECODING = "decoding"
    """The VAE decodes frames; each is encoded into the video at once."""
    ENCODING_VIDEO = "encoding_video"
    """All frames are decoded; the encoder finishes."""
    PUBLISHING = "publishing"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.PROCESSING, Status.COMPLETED, Status.FAILED}),
    Status.PROCESSING: frozenset({Status.COMPLETED, Status.FAILED, Status.QUEUED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
}
"""Every change of status. Guarded scripts in `worker/store/lua` make them:

QUEUED -> PROCESSING      start.lua: a worker takes the lease
PROCESSING -> COMPLETED   finish.lua: by the run that holds the lease, after the file is published
PROCESSING -> FAILED      finish.lua: by the same run; reap.lua: the last attempt's lease ended, or
                          the request was cancelled meanwhile; requeue.lua: cancelled, too
PROCESSING -> QUEUED      reap.lua: the lease ended; requeue.lua: the worker must stop
QUEUED -> COMPLETED       submit.lua: the video is kept; finish.lua: a twin's run has made it
QUEUED -> FAILED          cancel.lua; recover.lua: popped and lost on every attempt
"""


FAILURES = (
    *("content_blocked", "cancelled", "out_of_memory"),
    *("worker_lost", "timeout", "storage", "internal"),
)
"""Every `error_code`."""
NOT_FAILURES = frozenset({"cancelled", "content_blocked"})
"""Ends that the client or the operator wanted; reports count them apart from failures."""
UNMADE = "The worker that made the video is of an earlier release: it ignored {}."
CANCELLED = "The request was cancelled."
"""The client's `error` of a cancelled request."""


_TEXTS = (
    *("owner", "model", "traceparent", "file_name", "precision", "scenario"),
    *("error", "error_code", "draft_of", "siblings", "source", "source_warnings"),
)
_NUMBERS = (
    *("attempt", "created_at", "started_at", "ended_at", "step"),
    *("file_size", "poster_size", "last_frame_size", "cost", "remaining", "energy_mj"),
    *("draft_steps", "first_step", "cached", "source_ms"),
)
"""Fields of the record that a `Job` has by the same name."""


@dataclass(frozen=True)
class Job:
    """One request, as read at `seen_at`.

    Attributes:
        request_id: UUID v4, as text.
        owner: id of the API key that made it.
        status: see `Status`.
        params_json: the validated parameters; `params` and `files` decode them.
        model: slug; records of the default model have none.
        attempt: runs so far, including the present one and pops lost with their worker; requeued
            runs do not count.
        created_at, started_at, ended_at: milliseconds since 1970 by the broker's clock.
        traceparent: span of the submit, as W3C's header; empty without tracing.
        step: denoising steps done in the present run.
        run_progress: of the present run, 0 to 99; see `Run.progress`.
        stage: present stage; of an ended request the last one.
        preview_step: step of the latest preview picture; None without one.
        position: place in the queue, 1 is next; only when QUEUED.
        file_name: name in the output store; only when COMPLETED.
        file_size: bytes; only when COMPLETED.
        poster_size, last_frame_size: bytes; 0 without such a still.
        precision: of the engine, or empty; only when COMPLETED.
        warnings_json: messages of the run for the client, a JSON list; only when COMPLETED.
        hints_json: messages about the submit, a JSON list. `warnings` has both.
        scenario: of a mock engine, or empty; see `Scenario`.
        cost: charge in millionths of a credit; only when COMPLETED.
        remaining: what the owner could spend after the charge, by balance and monthly cap, in
            millionths; None without a limit.
        energy_mj: millijoules of the last run's cards; only when COMPLETED, None if unknown.
        siblings: ids of the requests that were submitted with it, after it, separated by spaces.
        draft_steps: of a draft, the steps that it runs; 0 of any other request.
        draft_of: of a request that finishes a draft, the draft's id; empty of any other.
        first_step: of the same, the steps of the draft; 0 of any other.
        cached: 1 if another request's run made the frames; else 0.
        source: for a worker, the name of a kept MP4 with the same frames at another fps, or empty;
            `source_warnings` and `source_ms` are of the run that made it.
        error: text for the client; only when FAILED.
        error_code: its machine-readable form; only when FAILED.
        expires_at: expiry of the record, once it has ended; in ms as above.
        seen_at: time of reading, in ms as above.
    """

    request_id: str
    owner: str
    status: Status
    params_json: str
    attempt: int
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    model: str = MODEL
    traceparent: str = ""
    step: int = 0
    run_progress: int = 0
    stage: Stage = Stage.QUEUED
    preview_step: int | None = None
    position: int | None = None
    file_name: str = ""
    file_size: int = 0
    poster_size: int = 0
    last_frame_size: int = 0
    precision: str = ""
    warnings_json: str = "[]"
    hints_json: str = "[]"
    scenario: str = ""
    cost: int = 0
    remaining: int | None = None
    energy_mj: int | None = None
    siblings: str = ""
    draft_steps: int = 0
    draft_of: str = ""
    first_step: int = 0
    cached: int = 0
    source: str = ""
    source_warnings: str = "[]"
    source_ms: int = 0
    error: str = ""
    error_code: str = ""
    expires_at: int | None = None
    seen_at: int = field(default=0, compare=False)

    @classmethod
    def from_record(
        cls,
        request_id: str,
        record: Mapping[str, str],
        *,
        position: int | None = None,
        expires_at: int | None = None,
        seen_at: int = 0,
    ) -> Job:
        """From the record's hash; the keyword arguments are not in it."""
        is_queued = record["status"] == Status.QUEUED
        texts = {name: record[name] for name in _TEXTS if record.get(name)}
        numbers = {name: int(record[name]) for name in _NUMBERS if record.get(name)}
        fields: dict[str, Any] = texts | numbers
        return cls(
            request_id=request_id,
            status=Status(record["status"]),
            params_json=record["params"],
            stage=Stage.QUEUED if is_queued else Stage(record.get("stage", Stage.ENCODING_PROMPT)),
            run_progress=int(record.get("progress", 0)),
            preview_step=int(record["preview"]) if record.get("preview") else None,
            position=position,
            warnings_json=record.get("warnings", "[]"),
            hints_json=record.get("hints", "[]"),
            expires_at=expires_at,
            seen_at=seen_at,
            **fields,
        )

    @cached_property
    def params(self) -> GenerateParams:
        """The parameters that decide the frames, with the seed that is used."""
        return CATALOGUE[self.model].parameters.model_validate_json(self.params_json)

    @property
    def request(self) -> RequestParams:
        """All parameters of the request, with the seed that is used."""
        return CATALOGUE[self.model].request.model_validate_json(self.params_json)

    @property
    def queue(self) -> str:
        """See `queue_of`."""
        return queue_of(self.params)

    @property
    def last_step(self) -> int:
        """The step with which its run ends."""
        return self.draft_steps or self.params.steps

    @cached_property
    def files(self) -> FileParams:
        """The parameters that decide the files."""
        return FileParams.model_validate_json(self.params_json)

    @property
    def stills(self) -> dict[Still, int]:
        """The stills that the run has made, each with its size in bytes."""
        sizes = {"poster": self.poster_size, "last_frame": self.last_frame_size}
        return {still: sizes[still] for still in STILLS if sizes[still]}

    @property
    def warnings(self) -> list[str]:
        hints: list[str] = json.loads(self.hints_json)
        warnings: list[str] = json.loads(self.warnings_json)
        return hints + warnings + self._unmade()

    def _unmade(self) -> list[str]:
        """A warning where the worker's release did not know a parameter of the files."""
        if self.status is not Status.COMPLETED:
            return []
        asked = self.files
        is_other = asked.format != "mp4" and not self.file_name.endswith(f".{asked.format}")
        unmade = [still for still in STILLS if getattr(asked, still) and still not in self.stills]
        names = [f"`{name}`" for name in (*(["format"] if is_other else []), *unmade)]
        return [UNMADE.format(" and ".join(names))] if names else []

    @property
    def queue_seconds(self) -> float | None:
        """From the submit to the start of the last run; to the end, where it has none."""
        start = self.ended_at if self.cached else None
        return _seconds_between(self.created_at, self.started_at or start)

    @property
    def inference_seconds(self) -> float | None:
        """The last run, from its start to the end: denoising, video and publishing."""
        seconds = _seconds_between(self.started_at, self.ended_at)
        return 0.0 if seconds is None and self.cached else seconds

    @property
    def total_seconds(self) -> float | None:
        return _seconds_between(self.created_at, self.ended_at)

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return max(0, self.attempt - 1)

    @property
    def progress(self) -> int:
        """Per cent of the run's time, 0 to 100; 100 only when COMPLETED."""
        return 100 if self.status is Status.COMPLETED else self.run_progress


def _seconds_between(start: int | None, end: int | None) -> float | None:
    if start is None or end is None:
        return None
    return max(0, end - start) / 1000  # the broker's clock may have been set back meanwhile
