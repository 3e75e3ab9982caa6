"""One HTTP request as a route sees it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from models.params import MODEL
from server.api.links import Links
from server.api.schemas import ResultBody, StatusBody, result_body, status_body
from server.api.services import Services
from server.keys.lookup import ApiKey, Scope
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
        """The caller's key. Only on a path that needs one."""
        key: ApiKey = self.request.state.api_key
        return key

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

    def require_submit(self) -> None:
        """Raise ForbiddenError unless the key may submit. Call it before the body is read."""
        self.key.require(Scope.GENERATE)
        self.key.require_model(MODEL)

    async def find_job(self) -> Job:
        """The request in the path.

        Raises:
            ForbiddenError: the key may not read.
            RequestNotFoundError: never made, expired, or made with another key.
        """
        self.key.require(Scope.READ)
        return await self.services.store.find(self.request_id, self.key.key_id)

    async def status_body(self, job: Job, *, with_preview: bool = False) -> StatusBody:
        """The status with a forecast and, on demand, the latest preview."""
        eta_seconds = await self.services.forecaster.seconds_left(job)
        preview = None
        if with_preview and job.preview_step is not None:
            preview = await self.services.store.preview(job.request_id)
        return status_body(job, self.links(job.request_id), eta_seconds, preview)

    async def result_body(self, job: Job) -> ResultBody:
        """The result with a link to the video.

        Raises:
            StorageError: the link to the video cannot be signed.
        """
        links = self.links(job.request_id)
        return result_body(job, await self.services.video_links.url(job, links))
