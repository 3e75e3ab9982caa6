"""A client with a key and a receiver of webhooks."""

from __future__ import annotations

from typing import Any

from tests.support.jobs import make_webhook_due
from tests.support.services.receiver import Call, Receiver
from tests.support.stack import Stack, eventually
from worker.store.webhooks.deliveries import Delivery, all_deliveries, signing_secrets

POND: dict[str, Any] = {"prompt": "a pond at night", "frames": 1, "steps": 10}


class Customer:
    """A client with a key and a receiver."""

    def __init__(self, stack: Stack, there: Receiver) -> None:
        self.stack = stack
        self.there = there
        self.key = stack.key()
        self.owner = stack.owner(self.key)
        self.http = stack.http(self.key)

    @property
    def secret(self) -> str:
        return signing_secrets(self.stack.redis, self.owner)[0]

    def submit(self, prompt: str = "a pond", **more: Any) -> str:
        body = POND | {"prompt": prompt, "webhook_url": self.there.url} | more
        answer = self.http.post("/v2/mochi-1", json=body)
        assert answer.is_success, answer.text
        assert "x-ignored-parameters" not in answer.headers
        return str(answer.json()["request_id"])

    def told(self, request_id: str, times: int = 1) -> Call:
        """The last of so many calls."""
        eventually(lambda: len(self.there.of(request_id)) >= times)
        calls = self.there.of(request_id)
        assert len(calls) == times
        return calls[-1]

    def delivery(self, request_id: str) -> Delivery:
        return eventually(lambda: self._found(request_id))[0]

    def _found(self, request_id: str) -> list[Delivery]:
        found = all_deliveries(self.stack.redis)
        return [delivery for delivery in found if delivery.request_id == request_id]

    def noted(self, request_id: str, times: int = 1) -> Delivery:
        """The delivery, once so many attempts have been noted."""
        eventually(lambda: len(self.delivery(request_id).log) >= times)
        return self.delivery(request_id)

    def make_due(self, request_id: str) -> None:
        """As if the time for the next attempt had come, or the sender's lease had ended."""
        make_webhook_due(self.stack.redis, request_id)
