"""The status of a request as server-sent events (HTML Living Standard, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from fastapi import APIRouter
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from models.errors import MochiError
from server.api.call import Call
from server.api.links import EVENTS, SIGNED
from server.api.openapi import EVENT_STREAM, REQUEST_ID, errors
from server.api.schemas import failed_body
from server.paths import EVENTS_PATH
from server.transport.parameters import Text, documented
from worker.job import Job, Status

UNBUFFERED = {"x-accel-buffering": "no"}
"""For proxies, which would otherwise hold events back."""
FINAL_ID = "end"
"""Of the last event of a request."""
LAST_EVENT_ID = Text(
    name="Last-Event-ID",
    place="header",
    description="The id of the last event that the client has got. `EventSource` sends it.",
)

router = APIRouter(tags=["Requests"])
_log = structlog.get_logger()


@router.get(
    EVENTS_PATH,
    response_class=StreamingResponse,
    responses={
        200: EVENT_STREAM,
        204: {"description": "The client has got the last event: it need not connect again."},
        **errors(401, 403, 404, 500, 502),
    },
    openapi_extra={"parameters": documented(REQUEST_ID, SIGNED, LAST_EVENT_ID)},
)
async def stream_events(request: Request) -> Response:
    """The status whenever it changes, as server-sent events, until the request has ended."""
    call = Call.of(request)
    if call.has_key:
        job = await call.find_job()
    else:
        job = await call.find_signed_job(EVENTS, SIGNED.read(request))
    if job.status.is_final and LAST_EVENT_ID.read(request) == FINAL_ID:
        return Response(status_code=204)
    # Not as FastAPI streams: its response would have begun before an unknown request is a 404.
    return _EventStream(_stream(call, job), headers=UNBUFFERED, media_type="text/event-stream")


class _EventStream(StreamingResponse):
    """Ends when the client sends no more: the next event, which shows a close, may be far off."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hang_up() -> Message:
            await scope["state"]["hang_up"].wait()
            return {"type": "http.disconnect"}

        await super().__call__(scope, hang_up, send)


async def _stream(call: Call, job: Job) -> AsyncIterator[bytes]:
    """All events from now on; the first is the state that `job` has."""
    before: Job | None = None
    async for now in call.services.poller.follow(job):
        if now is None:
            yield KEEPALIVE_COMMENT
            continue
        try:
            name, body = await _event(call, before, now)
        except MochiError as error:
            # Too late for an error response. The client reconnects and gets one then.
            _log.warning("events.cut", request_id=job.request_id, reason=str(error))
            return
        event_id = FINAL_ID if now.status.is_final else f"{now.attempt}-{now.step}"
        yield format_sse_event(event=name, data_str=body.model_dump_json(), id=event_id)
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
