"""What a `webhook_url` is called with: no route, but a part of the OpenAPI document."""

from __future__ import annotations

from fastapi import APIRouter

from server.schemas import WebhookBody

router = APIRouter(tags=["Webhooks"])


@router.post(
    "request-ended",
    status_code=204,
    responses={
        410: {"description": "Send it no more"},
        "default": {"description": "Send it again"},
    },
)
def request_ended(body: WebhookBody) -> None:
    """A request has ended. Signed as Standard Webhooks say; answered with any 2xx, or 410."""
