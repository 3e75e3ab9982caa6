"""The URLs in responses: absolute, on the host that the client called; those of videos signed."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit
from uuid import UUID

import structlog
from itsdangerous import Signer
from starlette.concurrency import run_in_threadpool

from server.paths import VIDEO_PATH
from worker.errors import StorageError
from worker.job import Job
from worker.outputs.base import Outputs, video_name
from worker.store.gateway_side import GatewayStore

SHORTEST_LINK_SECONDS = 5.0
_ANY_VIDEO = video_name(str(UUID(int=0)), "0" * 12)
"""The name of a video that never exists."""

_log = structlog.get_logger()


class Links:
    """The URLs of one request, under `base`: scheme and host. `cancel` takes PUT."""

    def __init__(self, base: str, request_id: str) -> None:
        self.base = base
        self.request_id = request_id
        self.poll = f"{base}/v1/requests/{request_id}"  # the result, at its older address
        self.response = f"{base}/v2/requests/{request_id}"
        self.status = f"{self.response}/status"
        self.cancel = f"{self.response}/cancel"
        self.events = f"{self.response}/events"

    def video(self, signer: Signer) -> str:
        """The video, for anyone with the link, as long as the record lives."""
        signature = signer.get_signature(self.request_id).decode()
        path = VIDEO_PATH.format(request_id=self.request_id)
        return f"{self.base}{path}?signature={signature}"


async def load_signer(store: GatewayStore) -> Signer:
    """Read the secret that all gateways share.

    Raises:
        BrokerUnavailableError: it cannot be read.
    """
    return Signer(await store.link_secret(), salt="video", digest_method=hashlib.sha256)


class VideoLinks:
    """Links to videos, signed by the output store if it can, by the gateway otherwise.

    The gateway's secret is loaded late, as a gateway may start before its broker.
    """

    def __init__(
        self,
        outputs: Outputs,
        store: GatewayStore,
        *,
        retention_seconds: float,
        public_url: str = "",
    ) -> None:
        self._outputs = outputs
        self._store = store
        self._retention_seconds = retention_seconds
        self._public_url = public_url
        self._signer: Signer | None = None
        self._store_origin: str | None = None

    async def signer(self) -> Signer:
        if self._signer is None:
            self._signer = await load_signer(self._store)
        return self._signer

    async def url(self, job: Job, links: Links) -> str:
        """Where the video of a COMPLETED request is served.

        Raises:
            BrokerUnavailableError: the gateway's secret cannot be read.
            StorageError: the output store cannot sign.
        """
        # In a thread: credentials that expire may have to be fetched.
        link = await run_in_threadpool(self._outputs.link, job.file_name, self.seconds_left(job))
        return link or links.video(await self.signer())

    async def origins(self) -> list[str]:
        """Scheme and host of links to videos, where they differ from the gateway's."""
        if self._store_origin is None:
            sign = self._outputs.link
            try:
                link = await run_in_threadpool(sign, _ANY_VIDEO, SHORTEST_LINK_SECONDS)
            except StorageError as error:
                _log.warning("outputs.no_link", reason=str(error))
                return []  # a result has no link either
            parts = urlsplit(link or self._public_url)
            self._store_origin = f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
        return [self._store_origin] if self._store_origin else []

    def seconds_left(self, job: Job) -> float:
        """Until the record expires; both times are the broker's."""
        left = ((job.expires_at or 0) - job.seen_at) / 1000
        return max(SHORTEST_LINK_SECONDS, min(left, self._retention_seconds))
