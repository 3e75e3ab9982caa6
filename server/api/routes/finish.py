"""Finishing a draft: `POST /v2/requests/{request_id}/finish` makes a new request of it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call
from server.api.openapi import FINISH_BODY, REQUEST_ID, SUBMIT_HEADERS, errors
from server.api.schemas import SubmittedBody
from server.api.submit.answer import submit
from server.api.submit.dry_run import DryRunBody
from server.api.submit.submission import (
    DRY_RUN,
    IDEMPOTENCY_KEY,
    MOCK_SCENARIO,
    OPTIONAL,
    WEBHOOK_URL,
    Submission,
)
from server.errors import DraftNotReadyError, NotADraftError
from server.keys.lookup import Scope
from server.transport.body import read_optional_fields
from server.transport.parameters import documented
from worker.job import Job, Status

router = APIRouter(tags=["Generate"])


@router.post(
    "/v2/requests/{request_id}/finish",
    response_model=SubmittedBody | DryRunBody,
    responses={
        200: {"headers": SUBMIT_HEADERS},
        **errors(400, 401, 402, 403, 404, 406, 409, 413, 415, 429, 500, 502),
    },
    openapi_extra={
        "parameters": documented(REQUEST_ID, IDEMPOTENCY_KEY, WEBHOOK_URL, MOCK_SCENARIO, DRY_RUN),
        "requestBody": FINISH_BODY,
    },
)
async def finish_draft(request: Request) -> Response:
    """Queue a request for the steps that a draft has left, to the video of a whole run.

    A draft has one finish: a second call answers with the first request, unless that has failed.
    With another `webhook_url` than the first it is refused.
    """
    call = Call.of(request)
    call.key.require(Scope.GENERATE)
    draft = _checked(await call.services.store.find(call.request_id, call.key.key_id))
    call.require_submit(draft.model)
    most_bytes = call.services.settings.body_bytes
    body = await read_optional_fields(request, most_bytes, OPTIONAL, WEBHOOK_URL.name)
    return await submit(await Submission.read_finish(call, body, draft))


def _checked(job: Job) -> Job:
    """Raise NotADraftError, or DraftNotReadyError until it is COMPLETED."""
    if not job.draft_steps:
        raise NotADraftError(job.request_id)
    if job.status is not Status.COMPLETED:
        raise DraftNotReadyError(job.request_id, job.status, job.error)
    return job
