"""Making a video: `POST /v2/mochi-1` answers at once, `POST /v1/mochi-1` with the video.

The other models have such routes, too.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.request.catalogue import CATALOGUE, Model
from server.api.call import Call
from server.api.openapi import (
    FAILED,
    RESULT_HEADERS,
    SUBMIT_HEADERS,
    VIDEO_BYTES,
    errors,
    generate_body,
    name_suffix,
    submit_body,
)
from server.api.schemas import (
    SubmittedBody,
    cost,
    failed_body,
    remaining,
)
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
from server.api.videos.file import video_response
from server.transport.body import read_fields
from server.transport.connection.disconnect import ends_before_hang_up
from server.transport.parameters import documented
from server.transport.responses import answer
from worker.job import Job, Status

CLIENT_CLOSED_REQUEST = 499
"""The status that proxies log for a client that has hung up."""

_PARAMETERS = (IDEMPOTENCY_KEY, WEBHOOK_URL, MOCK_SCENARIO)

router = APIRouter(tags=["Generate"])


async def submit_video(request: Request) -> Response:
    """Queue a video and answer at once with the addresses to poll."""
    submission = await _read(Call.of(request), takes_plan=True)
    return await submit(submission)


async def generate_video(request: Request) -> Response:
    """Make a video and answer with it. Blocks until it is ready; hanging up cancels it."""
    call = Call.of(request)
    services = call.services
    submission = await _read(call)
    accepted = await submission.accept(needs_worker=True)
    request_id = accepted.request_id
    request.state.request_id = request_id  # later errors name it: the request runs on
    end = services.poller.wait_for_end(request_id, services.settings.v1_seconds)
    if not services.settings.cancel_on_disconnect:
        await end  # the client may have ended its side only, and read on
    elif not await ends_before_hang_up(request, end):
        if submission.idempotency_key is None:  # it cannot come back
            services.canceller.cancel(request_id, call.key.key_id)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    job = await services.store.find(request_id, call.key.key_id)
    headers = {"x-request-id": request_id, **submission.headers(accepted)}
    if job.status is Status.FAILED:
        return answer(failed_body(job), 422, headers)
    return await video_response(services, job, headers | _result_headers(job))


def _add_routes(model: Model) -> None:
    suffix = name_suffix(model)
    router.add_api_route(
        f"/v2/{model.slug}",
        submit_video,
        methods=["POST"],
        name=submit_video.__name__ + suffix,
        response_model=SubmittedBody | DryRunBody,
        responses={
            200: {"headers": SUBMIT_HEADERS},
            **errors(400, 401, 402, 403, 404, 406, 409, 413, 415, 429, 500, 502),
        },
        openapi_extra={
            "parameters": documented(*_PARAMETERS, DRY_RUN),
            "requestBody": submit_body(model),
        },
    )
    router.add_api_route(
        f"/v1/{model.slug}",
        generate_video,
        methods=["POST"],
        name=generate_video.__name__ + suffix,
        response_class=Response,
        responses={
            200: {**VIDEO_BYTES, "headers": RESULT_HEADERS},
            422: FAILED,
            **errors(400, 401, 402, 403, 404, 406, 409, 413, 415, 429, 500, 502, 504),
        },
        openapi_extra={
            "parameters": documented(*_PARAMETERS),
            "requestBody": generate_body(model),
        },
    )


for _model in CATALOGUE.values():
    _add_routes(_model)


async def _read(call: Call, *, takes_plan: bool = False) -> Submission:
    """The path ends with the model's slug."""
    model = call.require_submit(call.request.scope["path"].rpartition("/")[2])
    body = await read_fields(call.request, call.services.settings.body_bytes, OPTIONAL)
    return await Submission.read(call, body, model=model, takes_plan=takes_plan)


def _result_headers(job: Job) -> dict[str, str]:
    return {
        "x-generation-time": f"{job.inference_seconds:.3f}",
        "x-seed-value": str(job.params.seed),
        "x-cost": f"{cost(job):f}",
        "x-remaining-credits": f"{remaining(job):f}",
        **({"x-cached": "true"} if job.cached else {}),
    }
