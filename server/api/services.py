"""What the routes use; put together in `server/app.py` and carried by the application."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from models.request.catalogue import CATALOGUE, Model
from server.api.links import VideoLinks
from server.api.poller import Poller
from server.errors import UnknownRouteError, UnservedModelError
from server.settings import ServerSettings
from server.transport.traffic import Traffic
from server.webhooks.address_rules import Guard
from worker.errors import BrokerUnavailableError, RequestNotFoundError
from worker.outputs.base import Outputs
from worker.outputs.store_check import StoreCheck
from worker.store.gateway_side import GatewayStore
from worker.store.presence import LiveWorker
from worker.store.reports.forecast import Forecaster
from worker.store.reports.history import History
from worker.store.reports.statistics import Statistics
from worker.store.reports.usage import UsageStore
from worker.store.webhooks.standing import StandingWebhooks

CANCEL_TRIES = 60
CANCEL_PAUSE_SECONDS = 1.0

_log = structlog.get_logger()


class Canceller:
    """Cancels the requests of clients that hung up, and retries while the broker is away."""

    def __init__(self, store: GatewayStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    def cancel(self, request_id: str, owner: str) -> None:
        task = asyncio.create_task(self._cancel(request_id, owner))
        self._tasks.add(task)  # the event loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, request_id: str, owner: str) -> None:
        for _ in range(CANCEL_TRIES):
            try:
                await self._store.cancel(request_id, owner)
            except BrokerUnavailableError:
                await asyncio.sleep(CANCEL_PAUSE_SECONDS)
                continue
            except RequestNotFoundError:
                pass  # it has expired meanwhile
            return
        _log.warning("request.not_cancelled", request_id=request_id)


class ServedModels:
    """The models that clients may ask for: of the settings, and what live workers run.

    A model stays once a worker has run it: while its workers restart, requests wait for them.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._slugs = {model.slug for model in models}
        self.loras: set[str] = set()
        """Names of LoRAs that workers have, or had since the gateway's start."""

    def __iter__(self) -> Iterator[Model]:
        """In the order of the catalogue."""
        return (model for model in CATALOGUE.values() if model.slug in self._slugs)

    @property
    def slugs(self) -> list[str]:
        return [model.slug for model in self]

    def saw(self, workers: Iterable[LiveWorker]) -> None:
        """Add what these workers run."""
        for worker in workers:
            self._slugs.update(worker.models)
            self.loras.update(worker.engine.loras)

    def find(self, slug: object) -> Model:
        """The model with this slug.

        Raises:
            UnknownRouteError: this release has none.
            UnservedModelError: this server has not.
        """
        model = CATALOGUE.get(slug) if isinstance(slug, str) else None
        if model is None:
            raise UnknownRouteError(self.slugs, has_docs=False)
        if model.slug not in self._slugs:
            raise UnservedModelError(model.slug, self.slugs)
        return model


@dataclass(frozen=True)
class Services:
    """One of each for the life of the gateway."""

    settings: ServerSettings
    models: ServedModels
    store: GatewayStore
    forecaster: Forecaster
    statistics: Statistics
    usage: UsageStore
    history: History
    standing: StandingWebhooks
    poller: Poller
    canceller: Canceller
    outputs: Outputs
    store_check: StoreCheck
    video_links: VideoLinks
    webhook_guard: Guard
    traffic: Traffic
