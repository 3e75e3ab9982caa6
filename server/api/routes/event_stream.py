"""What is said in a stream of events, and how: HTML Living Standard, 9.2 Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel

from models.errors import MochiError
from server.api.call import Call
from server.api.schemas import failed_body
from worker.job import Job, Status

UNBUFFERED = {"x-accel-buffering": "no"}
"""For proxies; that nothing is to be stored is said of every answer."""

_log = structlog.get_logger()


async def stream(call: Call, job: Job) -> AsyncIterator[bytes]:
    """All events of a request from now on, beginning with how `job` stands."""
    before: Job | None = None
    async for now in call.services.poller.follow(job):
        if now is None:
            yield KEEPALIVE_COMMENT
            continue
        try:
            name, body = await _event(call, before, now)
        except MochiError as error:
            # Too late for an error: who finds the stream at its end asks again, and is told then.
            _log.warning("events.cut", request_id=job.request_id, reason=str(error))
            return
        yield format_sse_event(event=name, data_str=body.model_dump_json())
        before = now


async def _event(call: Call, before: Job | None, now: Job) -> tuple[str, BaseModel]:
    match now.status:
        case Status.COMPLETED:
            return "output", await call.result_body(now)
        case Status.FAILED:
            return "status", failed_body(now)
    is_new_picture = before is None or now.preview_step != before.preview_step
    body = await call.status_body(now, with_preview=is_new_picture)
    if before is None or (before.status, before.attempt) != (now.status, now.attempt):
        return "status", body
    return "preview" if body.preview else "progress", body
