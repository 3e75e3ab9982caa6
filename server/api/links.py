"""The URLs in answers: absolute, on the host that the client called, the video's signed."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import redis.asyncio
from itsdangerous import Signer

from server.paths import VIDEO_PATH
from worker.broker.connection import broker_errors
from worker.store import keyspace


async def load_signer(redis: redis.asyncio.Redis) -> Signer:
    """Sign with the secret that all gateways share; the first of them draws it.

    Raises:
        BrokerUnavailableError: the secret cannot be had.
    """
    with broker_errors():
        await redis.set(keyspace.LINK_SECRET, secrets.token_hex(32), nx=True)
        secret = await redis.get(keyspace.LINK_SECRET)
    return Signer(str(secret), salt="video", digest_method=hashlib.sha256)


@dataclass(frozen=True)
class Links:
    """The URLs of one request, under `base`: scheme and host."""

    base: str
    request_id: str

    @property
    def status(self) -> str:
        """Light poll."""
        return f"{self.base}/v2/requests/{self.request_id}/status"

    @property
    def response(self) -> str:
        """Result."""
        return f"{self.base}/v2/requests/{self.request_id}"

    @property
    def poll(self) -> str:
        """Result, at its older address."""
        return f"{self.base}/v1/requests/{self.request_id}"

    @property
    def cancel(self) -> str:
        """To be called with PUT."""
        return f"{self.base}/v2/requests/{self.request_id}/cancel"

    @property
    def events(self) -> str:
        """Status as it changes, as server-sent events."""
        return f"{self.base}/v2/requests/{self.request_id}/events"

    def video(self, signer: Signer) -> str:
        """The video. Whoever has the link may see it, as long as the record lives."""
        signature = signer.get_signature(self.request_id).decode()
        path = VIDEO_PATH.format(request_id=self.request_id)
        return f"{self.base}{path}?signature={signature}"
