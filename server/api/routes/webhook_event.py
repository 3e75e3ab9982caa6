"""Webhook events: their bodies and OpenAPI entries. The gateway serves no such routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.api.links import Links, VideoLinks
from server.api.schemas import BudgetBody, BudgetData, WebhookBody, failed_body, result_body
from server.keys.times import from_ms
from server.transport.parameters import Text, documented
from worker.billing import from_millionths
from worker.job import Status
from worker.store.webhooks.deliveries import Delivery

_HEADERS = (
    ("webhook-id", "The id of the request, or of the notice; the same for every attempt."),
    ("webhook-timestamp", "The time of the attempt, in seconds since 1970."),
    ("webhook-signature", "`v1,` and a signature; during a rotation two, separated by a space."),
)

router = APIRouter(tags=["Webhooks"])


_EVENT: dict[str, Any] = {
    "status_code": 204,
    "responses": {
        410: {"description": "Stop: the delivery is given up"},
        "default": {"description": "Retry later"},
    },
    "openapi_extra": {
        "security": [],  # the gateway signs
        "parameters": documented(
            *(
                Text(name=name, description=description, place="header", is_required=True)
                for name, description in _HEADERS
            )
        ),
    },
}


@router.post("request-ended", operation_id="request_ended", **_EVENT)
def request_ended(body: WebhookBody) -> None:
    """A request has ended. Signed as Standard Webhooks specify; answer with any 2xx, or 410."""


@router.post("budget-spent", operation_id="budget_spent", **_EVENT)
def budget_spent(body: BudgetBody) -> None:
    """A key has spent 80 per cent of its monthly cap, or all; each is told once a month.

    Only standing webhooks with the event type `BUDGET` receive it, signed like the others.
    """


async def webhook_body(delivery: Delivery, video_links: VideoLinks) -> str:
    """A notice, or what `GET /v2/requests/{id}` gave at the end, with links on the submit's host.

    Raises:
        BrokerUnavailableError, StorageError: the link to the video cannot be signed.
    """
    if delivery.event:
        return _budget_body(delivery).model_dump_json()
    job = delivery.job
    ended_at = from_ms(job.ended_at or 0)
    if job.status is Status.FAILED:
        body = WebhookBody(type="request.failed", timestamp=ended_at, data=failed_body(job))
    else:
        links = Links(delivery.base_url, job.request_id)
        url, stills = await video_links.url(job, links), await video_links.stills(job, links)
        data = result_body(job, links, url, stills)
        body = WebhookBody(type="request.completed", timestamp=ended_at, data=data)
    return body.model_dump_json()


def _budget_body(delivery: Delivery) -> BudgetBody:
    notice = delivery.notice
    data = BudgetData.model_validate(
        {
            "key_id": delivery.owner,
            "month": notice.month,
            "month_ends_at": from_ms(notice.ends_at),
            "percent": notice.percent,
            "monthly_cap": from_millionths(notice.monthly_cap),
            "charged": from_millionths(notice.charged),
        }
    )
    return BudgetBody.model_validate(
        {"type": delivery.event, "timestamp": from_ms(delivery.created_at), "data": data}
    )
