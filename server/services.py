"""What the routes work with; put together in `app.py` and carried by the application."""

from __future__ import annotations

from dataclasses import dataclass

import redis.asyncio
from itsdangerous import Signer
from starlette.requests import Request

from server.keyring import ApiKey, Keyring
from server.links import Links, load_signer
from server.settings import ServerSettings
from server.watch import Watch
from worker.intake import Intake
from worker.outputs import LocalOutputs


class Services:
    """One of each, for the life of the gateway."""

    def __init__(self, settings: ServerSettings, redis: redis.asyncio.Redis) -> None:
        self.settings = settings
        self.keyring = Keyring(redis)
        self.intake = Intake(
            redis,
            most_waiting=settings.most_waiting,
            retention_seconds=settings.retention_seconds,
        )
        self.watch = Watch(self.intake)
        self.outputs = LocalOutputs(settings.outputs_dir)
        self._redis = redis
        self._signer: Signer | None = None

    async def signer(self) -> Signer:
        """What signs the links to videos. Loaded late, so that a gateway starts before its broker.

        Raises:
            BrokerUnavailableError: the shared secret cannot be had yet.
        """
        if self._signer is None:
            self._signer = await load_signer(self._redis)
        return self._signer


@dataclass(frozen=True)
class Call:
    """One HTTP request as a route sees it: the services, and what the gate found out."""

    services: Services
    request: Request

    @classmethod
    def of(cls, request: Request) -> Call:
        """Wrap `request`."""
        return cls(request.app.state.services, request)

    @property
    def key(self) -> ApiKey:
        """Who calls. There is always somebody on a path that is not public."""
        key: ApiKey = self.request.state.api_key
        return key

    @property
    def request_id(self) -> str:
        """The id in the path: any text. Read here, as FastAPI takes a fifth of a poll's time."""
        request_id: str = self.request.path_params["request_id"]
        return request_id

    def links(self, request_id: str) -> Links:
        """The URLs of a request, on the host that was called."""
        return Links(self.request.state.base_url, request_id)
