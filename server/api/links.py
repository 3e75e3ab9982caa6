"""The URLs in responses: absolute, on the host that the client called; those of videos signed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from urllib.parse import urlsplit

from itsdangerous import Signer
from starlette.concurrency import run_in_threadpool

from models.request.params import Still
from server.paths import FILE_LINK, SIGNATURE
from server.transport.parameters import Text
from worker.job import Job
from worker.outputs.base import Outputs, ending_of, still_name
from worker.store.gateway_side import GatewayStore

SHORTEST_LINK_SECONDS = 5.0
VIDEO, EVENTS = "video", "events"
"""What a signature opens: all files of a video, or its events."""
SIGNED = Text(
    name=SIGNATURE,
    description="As in the `output` of a result and the `events_url` of a status; it is the key.",
)


class Links:
    """The URLs of one request, under `base`: scheme and host. `cancel` takes PUT, `finish` POST."""

    def __init__(self, base: str, request_id: str) -> None:
        self.base = base
        self.request_id = request_id
        self.poll = f"{base}/v1/requests/{request_id}"  # the result, at its older address
        self.response = f"{base}/v2/requests/{request_id}"
        self.status = f"{self.response}/status"
        self.cancel = f"{self.response}/cancel"
        self.finish = f"{self.response}/finish"

    def video(self, signer: LinkSigner, ending: str = ".mp4") -> str:
        """The video, for anyone with the link, as long as the record lives; or another file.

        `ending`: of its name; see `ending_of`.
        """
        signature = signer.sign(VIDEO, self.request_id)
        return self.base + FILE_LINK.format(signature=signature, name=self.request_id + ending)

    def events(self, signer: LinkSigner) -> str:
        """The events, for anyone with the link: a browser's `EventSource` sends no header."""
        return f"{self.response}/events?{SIGNATURE}={signer.sign(EVENTS, self.request_id)}"


@dataclass(frozen=True)
class LinkSigner:
    """Signs links that work without a key, each for one purpose and one request."""

    secret: str

    def sign(self, purpose: str, request_id: str) -> str:
        return _signature(self.secret, purpose, request_id)

    def is_signed(self, purpose: str, request_id: str, signature: str) -> bool:
        """Whether `signature` is the one: itsdangerous takes several spellings of it.

        Any text of a client may come here, so nothing is cached.
        """
        right = _signature.__wrapped__(self.secret, purpose, request_id)
        return compare_digest(right.encode(), signature.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=4096)  # a request is polled many times
def _signature(secret: str, purpose: str, request_id: str) -> str:
    signer = Signer(secret, salt=purpose, digest_method=hashlib.sha256)
    return signer.get_signature(request_id).decode()


async def load_signer(store: GatewayStore) -> LinkSigner:
    """Read the secret that all gateways share.

    Raises:
        BrokerUnavailableError: it cannot be read.
    """
    return LinkSigner(await store.link_secret())


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
        self._signer: LinkSigner | None = None

    async def signer(self) -> LinkSigner:
        if self._signer is None:
            self._signer = await load_signer(self._store)
        return self._signer

    async def url(self, job: Job, links: Links) -> str:
        """Where the video of a COMPLETED request is served.

        Raises:
            BrokerUnavailableError: the gateway's secret cannot be read.
            StorageError: the output store cannot sign.
        """
        return await self._url(job.file_name, job, links)

    async def stills(self, job: Job, links: Links) -> dict[Still, str]:
        """Where the stills of a COMPLETED request are served. Raises as `url`."""
        return {
            still: await self._url(still_name(job.file_name, still), job, links)
            for still in job.stills
        }

    async def _url(self, name: str, job: Job, links: Links) -> str:
        # A store's link would show the id of the request whose run has made a cached video.
        if job.cached:
            return links.video(await self.signer(), ending_of(name))
        # In a thread: credentials that expire may have to be fetched.
        link = await run_in_threadpool(self._outputs.link, name, self.seconds_left(job))
        return link or links.video(await self.signer(), ending_of(name))

    def origins(self) -> list[str]:
        """Scheme and host of every link in responses, where they differ from the gateway's."""
        found = dict.fromkeys([_origin(self._public_url), self._outputs.link_origin])
        return [*filter(None, found)]

    def seconds_left(self, job: Job) -> float:
        """Until the record expires; both times are the broker's."""
        left = ((job.expires_at or 0) - job.seen_at) / 1000
        return max(SHORTEST_LINK_SECONDS, min(left, self._retention_seconds))


def _origin(url: str) -> str:
    """Scheme and host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
