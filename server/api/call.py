"""One HTTP request as a route sees it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from models.request.catalogue import Model
from server.api.links import Links
from server.api.schemas import ResultBody, StatusBody, result_body, status_body
from server.api.services import Services
from server.errors import MissingKeyError
from server.keys.lookup import ApiKey, Scope
from worker.errors import RequestNotFoundError
from worker.job import Job


@dataclass(frozen=True)
class Call:
    """One HTTP request: the services, and what the middleware has found out.

    Methods that ask the broker raise BrokerUnavailableError when it does not answer.
    """

    services: Services
    request: Request

    @classmethod
    def of(cls, request: Request) -> Call:
        return cls(request.app.state.services, request)

    @property
    def key(self) -> ApiKey:
        """The caller's key.

        Raises:
            MissingKeyError: it has none, as the path needs none.
        """
        if not self.has_key:
            raise MissingKeyError
        key: ApiKey = self.request.state.api_key
        return key

    @property
    def has_key(self) -> bool:
        """Whether it was authenticated by a key; otherwise a signature has to stand for it."""
        return hasattr(self.request.state, "api_key")

    @property
    def request_id(self) -> str:
        """The id in the path: any text. Read here, as FastAPI takes a fifth of a poll's time."""
        request_id: str = self.request.path_params["request_id"]
        return request_id

    @property
    def base_url(self) -> str:
        """The scheme and host that was called, or the configured one."""
        base_url: str = self.request.state.base_url
        return base_url

    def links(self, request_id: str) -> Links:
        return Links(self.base_url, request_id)

    def require_submit(self, slug: object) -> Model:
        """The model with this slug, if the key may submit requests for it.

        Raises:
            ForbiddenError: the key may not.
            UnknownRouteError, UnservedModelError: see `ServedModels.find`.
        """
        self.key.require(Scope.GENERATE)
        model = self.services.models.find(slug)
        self.key.require_model(model.slug)
        return model

    async def find_job(self) -> Job:
        """The request in the path.

        Raises:
            ForbiddenError: the key may not read.
            RequestNotFoundError: never made, expired, or made with another key.
        """
        self.key.require(Scope.READ)
        return await self.services.store.find(self.request_id, self.key.key_id)

    async def find_signed_job(self, purpose: str, signature: str) -> Job:
        """The request in the path, for a caller with a signed link instead of its key.

        Raises:
            RequestNotFoundError: never made, expired, or the signature is wrong.
        """
        signer = await self.services.video_links.signer()
        if not signer.is_signed(purpose, self.request_id, signature):
            raise RequestNotFoundError(self.request_id)
        return await self.services.store.find_signed(self.request_id)

    async def status_body(self, job: Job, *, with_preview: bool = False) -> StatusBody:
        """The status with a forecast and, on demand, the latest preview."""
        eta_seconds = await self.services.forecaster.seconds_left(job)
        preview = None
        if with_preview and job.preview_step is not None:
            preview = await self.services.store.preview(job.request_id)
        links, events_url = self.links(job.request_id), None
        if not job.status.is_final:
            events_url = links.events(await self.services.video_links.signer())
        return status_body(job, links, events_url, eta_seconds, preview)

    async def result_body(self, job: Job) -> ResultBody:
        """The result with a link to the video; without the key's balance where it has no key.

        Raises:
            StorageError: the link to the video cannot be signed.
        """
        links = self.links(job.request_id)
        video_links = self.services.video_links
        url, stills = await video_links.url(job, links), await video_links.stills(job, links)
        body = result_body(job, links, url, stills)
        if not self.has_key:
            body.metrics.remaining_credits = None
        return body
