"""The answer to a submit that does not wait for the video."""

from __future__ import annotations

from starlette.responses import Response

from server.api.schemas import submitted_body, submitted_requests
from server.api.submit.dry_run import dry_run
from server.api.submit.submission import Submission
from server.transport.responses import answer


async def submit(submission: Submission) -> Response:
    """Accept it, or tell what would come of it."""
    if submission.is_dry_run:
        return answer(await dry_run(submission), headers=submission.headers())
    call, accepted = submission.call, await submission.accept()
    links, requests = call.links(accepted.request_id), None
    if submission.plan.count is not None:
        call.request.state.request_id = accepted.request_id  # later errors name it
        first = await call.services.store.find(accepted.request_id, call.key.key_id)
        requests = submitted_requests(first, call.base_url)
    return answer(submitted_body(links, requests), headers=submission.headers(accepted))
