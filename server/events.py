"""What is said in a stream of events, and how: HTML Living Standard, 9.2 Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel

from models.errors import MochiError
from server.schemas import failed_body
from server.services import Call
from worker.job import Job, Status

UNBUFFERED = {"x-accel-buffering": "no"}
"""For proxies; that nothing is to be stored is said of every answer."""

_log = structlog.get_logger()


async def stream(call: Call, job: Job) -> AsyncIterator[bytes]:
    """All events of a request from now on, beginning with how `job` stands."""
    before: Job | None = None
    async for now in call.services.feed.follow(job):
        if now is None:
            yield KEEPALIVE_COMMENT
            continue
        try:
            body = await _body(call, now)
        except MochiError as error:
            # Too late for an error: who finds the stream at its end asks again, and is told then.
            _log.warning("events.cut", request_id=job.request_id, reason=str(error))
            return
        yield format_sse_event(event=_name(before, now), data_str=body.model_dump_json())
        before = now


def _name(before: Job | None, now: Job) -> str:
    if now.status is Status.COMPLETED:
        return "output"
    is_as_before = before and (before.status, before.attempt) == (now.status, now.attempt)
    return "progress" if is_as_before else "status"


async def _body(call: Call, job: Job) -> BaseModel:
    match job.status:
        case Status.FAILED:
            return failed_body(job)
        case Status.COMPLETED:
            return await call.result_body(job)
        case _:
            return await call.status_body(job)
