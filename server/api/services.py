"""What the routes work with; put together in `app.py` and carried by the application."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import redis.asyncio
import structlog
from itsdangerous import Signer
from starlette.concurrency import run_in_threadpool

from models.params import GenerateParams
from server.api.completion import Watch
from server.api.dry_run import Estimate
from server.api.links import Links, load_signer
from server.api.metrics import Gathered
from server.api.status_feed import Feed
from server.keys.lookup import KeyLookup
from server.settings import ServerSettings
from server.transport.traffic import Traffic
from server.webhooks.address_rules import Guard
from worker.broker.connection import broker_errors
from worker.errors import BrokerUnavailableError, RequestNotFoundError, StorageError
from worker.job import Job
from worker.outputs.base import video_name
from worker.outputs.factory import open_outputs
from worker.pace import Work
from worker.store import keyspace, scripts
from worker.store.forecast import Forecaster
from worker.store.gateway_side import GatewayStore
from worker.store.statistics import Survey
from worker.store.usage import Period, Usage, fields_of

STORE_PATIENCE_SECONDS = 10.0
"""A client waits for the answer; less than any proxy in between does."""
SHORTEST_LINK_SECONDS = 5.0
CANCEL_TRIES = 60
CANCEL_PAUSE_SECONDS = 1.0
_ANY_VIDEO = video_name(str(UUID(int=0)), "0" * 12)
"""One that there never is."""

_log = structlog.get_logger()


class Services:
    """One of each, for the life of the gateway.

    Raises:
        OutputsUnusableError: a variable for the store of videos has a bad value.
    """

    def __init__(self, settings: ServerSettings, redis: redis.asyncio.Redis) -> None:
        self.settings = settings
        self.keyring = KeyLookup(redis)
        self.intake = GatewayStore(
            redis,
            most_waiting=settings.most_waiting,
            retention_seconds=settings.retention_seconds,
        )
        self.forecaster = Forecaster(redis)
        self.watch = Watch(self.intake)
        self.feed = Feed(self.intake)
        self.webhook_guard = Guard(settings.webhook_allow)
        self.outputs = open_outputs(settings, patience_seconds=STORE_PATIENCE_SECONDS)
        self.traffic = Traffic()
        self._redis = redis
        self._survey = redis.register_script(scripts.source("survey"))
        self._signer: Signer | None = None
        self._store_origin: str | None = None
        self._cancelling: set[asyncio.Task[None]] = set()

    def cancel_for_sure(self, request_id: str, owner: str) -> None:
        """Cancel, also when the broker is away for a while: nobody is there to ask again."""
        task = asyncio.create_task(self._cancel_for_sure(request_id, owner))
        self._cancelling.add(task)  # the event loop itself keeps none
        task.add_done_callback(self._cancelling.discard)

    async def _cancel_for_sure(self, request_id: str, owner: str) -> None:
        for _ in range(CANCEL_TRIES):
            try:
                await self.intake.cancel(request_id, owner)
            except BrokerUnavailableError:
                await asyncio.sleep(CANCEL_PAUSE_SECONDS)
                continue
            except RequestNotFoundError:
                pass  # forgotten meanwhile
            return
        _log.warning("request.not_cancelled", request_id=request_id)

    async def signer(self) -> Signer:
        """What signs the links to videos. Loaded late, so that a gateway starts before its broker.

        Raises:
            BrokerUnavailableError: the shared secret cannot be had yet.
        """
        if self._signer is None:
            self._signer = await load_signer(self._redis)
        return self._signer

    async def usage(self, period: Period, owner: str) -> list[Usage]:
        """What a key used.

        Raises:
            BrokerUnavailableError: nobody can tell.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for key in period.keys:
            pipeline.hmget(key, fields_of(owner))
        with broker_errors():
            return period.usages_of(owner, await pipeline.execute())

    async def usage_of_all(self, period: Period) -> list[Usage]:
        """What all keys used. A day at a time, so that nobody waits long behind many.

        Raises:
            BrokerUnavailableError: nobody can tell.
        """
        with broker_errors():
            kept: list[Any] = [await self._redis.hgetall(key) for key in period.keys]
        return await run_in_threadpool(period.usages, kept)

    async def metrics(self, version: str) -> Gathered:
        """All figures, as they are now. Without a broker those of this gateway alone."""
        try:
            with broker_errors():
                survey = Survey.of(await self._survey(keyspace.for_scripts()))
                keys = survey.device_keys
                told = await self._redis.mget(keys) if keys else []
        except BrokerUnavailableError:
            return Gathered(version, self.traffic, None, {})
        return Gathered(version, self.traffic, survey, survey.devices(told))

    async def video_url(self, job: Job, links: Links) -> str:
        """Where the video of a COMPLETED request is served: by the store itself, where it can.

        Raises:
            BrokerUnavailableError: the link cannot be signed yet.
            StorageError: the store's link cannot be signed.
        """
        # In a thread: credentials that expire may have to be fetched.
        link = await run_in_threadpool(self.outputs.link, job.file_name, self.seconds_left(job))
        return link or links.video(await self.signer())

    async def estimate(self, params: GenerateParams, position: int) -> Estimate:
        """How long a request would take that came to this place in the queue now.

        Raises:
            BrokerUnavailableError: nobody can tell.
        """
        forecast = await self.forecaster.now()
        wait_seconds = forecast.start_seconds_at(position, time.monotonic())
        return Estimate(wait_seconds, forecast.run_seconds(Work.of(params)))

    async def video_origins(self) -> list[str]:
        """Where links to videos lead, if not to where the gateway was called: scheme and host."""
        if self._store_origin is None:
            try:
                link = await run_in_threadpool(self.outputs.link, _ANY_VIDEO, SHORTEST_LINK_SECONDS)
            except StorageError as error:
                _log.warning("outputs.no_link", reason=str(error))
                return []  # nor does a result have one now
            self._store_origin = _origin(link or self.settings.public_url)
        return [self._store_origin] if self._store_origin else []

    def seconds_left(self, job: Job) -> float:
        """Until the record goes, as far as the clocks of broker and gateway agree."""
        left = (job.expires_at or 0) / 1000 - time.time()
        return max(SHORTEST_LINK_SECONDS, min(left, self.settings.retention_seconds))


def _origin(url: str) -> str:
    """Scheme and host, as browsers compare them; empty for no URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
