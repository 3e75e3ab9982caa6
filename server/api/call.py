"""One HTTP request as a route sees it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from server.api.links import Links
from server.api.schemas import ResultBody, StatusBody, result_body, status_body
from server.api.services import Services
from server.keys.lookup import ApiKey
from worker.job import Job


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

    @property
    def base_url(self) -> str:
        """The scheme and host that was called, or the configured one."""
        base_url: str = self.request.state.base_url
        return base_url

    def links(self, request_id: str) -> Links:
        """The URLs of a request, on the host that was called."""
        return Links(self.base_url, request_id)

    async def status_body(self, job: Job, *, with_preview: bool = False) -> StatusBody:
        """See there.

        Raises:
            BrokerUnavailableError: nobody can tell when it will end, or show what it looks like.
        """
        eta_seconds = await self.services.forecaster.seconds_left(job)
        preview = None
        if with_preview and job.preview_step is not None:
            preview = await self.services.intake.preview(job.request_id)
        return status_body(job, self.links(job.request_id), eta_seconds, preview)

    async def result_body(self, job: Job) -> ResultBody:
        """See there.

        Raises:
            BrokerUnavailableError, StorageError: the link to the video cannot be signed.
        """
        links = self.links(job.request_id)
        return result_body(job, await self.services.video_url(job, links))
