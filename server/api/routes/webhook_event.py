"""What a `webhook_url` is called with: no route, but a part of the OpenAPI document."""

from __future__ import annotations

from fastapi import APIRouter

from server.api.schemas import WebhookBody

router = APIRouter(tags=["Webhooks"])


@router.post(
    "request-ended",
    status_code=204,
    responses={
        410: {"description": "Send it no more"},
        "default": {"description": "Send it again"},
    },
    openapi_extra={
        "security": [],  # it is we who sign
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": description,
                "schema": {"type": "string"},
            }
            for name, description in (
                ("webhook-id", "The id of the request."),
                ("webhook-timestamp", "Of the attempt, in seconds since 1970."),
                ("webhook-signature", "`v1,` and a signature; two during a rotation, by a space."),
            )
        ],
    },
)
def request_ended(body: WebhookBody) -> None:
    """A request has ended. Signed as Standard Webhooks say; answered with any 2xx, or 410."""
