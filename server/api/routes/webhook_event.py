"""The webhook event: its body and its OpenAPI entry. The gateway serves no such route."""

from __future__ import annotations

from fastapi import APIRouter

from server.api.links import Links, VideoLinks
from server.api.schemas import WebhookBody, failed_body, result_body
from server.keys.times import from_ms
from server.transport.parameters import Text, documented
from worker.job import Status
from worker.store.webhooks.deliveries import Delivery

_HEADERS = (
    ("webhook-id", "The id of the request."),
    ("webhook-timestamp", "The time of the attempt, in seconds since 1970."),
    ("webhook-signature", "`v1,` and a signature; during a rotation two, separated by a space."),
)

router = APIRouter(tags=["Webhooks"])


@router.post(
    "request-ended",
    operation_id="request_ended",
    status_code=204,
    responses={
        410: {"description": "Stop: the delivery is given up"},
        "default": {"description": "Retry later"},
    },
    openapi_extra={
        "security": [],  # the gateway signs
        "parameters": documented(
            *(
                Text(name=name, description=description, place="header", is_required=True)
                for name, description in _HEADERS
            )
        ),
    },
)
def request_ended(body: WebhookBody) -> None:
    """A request has ended. Signed as Standard Webhooks specify; answer with any 2xx, or 410."""


async def webhook_body(delivery: Delivery, video_links: VideoLinks) -> str:
    """What `GET /v2/requests/{id}` gave at the end, with links on the host of the submit.

    Raises:
        BrokerUnavailableError, StorageError: the link to the video cannot be signed.
    """
    job = delivery.job
    ended_at = from_ms(job.ended_at or 0)
    if job.status is Status.FAILED:
        body = WebhookBody(type="request.failed", timestamp=ended_at, data=failed_body(job))
    else:
        url = await video_links.url(job, Links(delivery.base_url, job.request_id))
        data = result_body(job, url)
        body = WebhookBody(type="request.completed", timestamp=ended_at, data=data)
    return body.model_dump_json()
