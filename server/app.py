"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from models.errors import MochiError
from server.answers import handle_error, handle_routing_error
from server.contact import stay_in_contact
from server.documents import document
from server.gate import METRICS, Gate
from server.page import Page
from server.routes import (
    account,
    generate,
    operations,
    pages,
    requests,
    videos_api,
    webhook_events,
)
from server.services import Services
from server.settings import ServerSettings
from server.tracing import telemetry
from server.webhooks import Sender
from worker.contact import Contact
from worker.webhooks import Deliveries

DESCRIPTION = (
    "Text to video with Mochi 1, on your own machines. "
    "All routes need a key, in `x-api-key` or as a bearer token, but the video's, whose link is "
    "signed, the probes and `/version`."
)


def create_app(
    settings: ServerSettings,
    redis: redis.asyncio.Redis,
    *,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Put the gateway together. `redis` is closed with it.

    Raises:
        OutputsUnusableError: a variable for the store of videos has a bad value.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        contact = asyncio.create_task(stay_in_contact(services.intake, Contact(settings.redis_url)))
        sender.start()
        yield
        contact.cancel()
        await sender.stop()
        await redis.aclose()

    app = FastAPI(
        title="mochi-server",
        version=operations.VERSION,
        description=DESCRIPTION,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=telemetry(tracer_provider),
        exception_handlers={MochiError: handle_error, HTTPException: handle_routing_error},
    )
    app.state.services = services = Services(settings, redis)
    app.add_middleware(
        Gate,
        keyring=services.keyring,
        public_url=settings.public_url,
        traffic=services.traffic,
        also_public=frozenset({METRICS} if settings.metrics_public else ()),
    )
    sender = Sender(services, Deliveries(redis, retention_seconds=settings.retention_seconds))
    modules = [
        generate,
        requests,
        videos_api,
        account,
        operations,
        *([pages] if settings.docs else []),
    ]
    routers = [module.router for module in modules]
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    if settings.docs:
        app.mount("/docs", StaticFiles(packages=[("fastapi_swagger", "resources")]))
        app.mount("/page", StaticFiles(packages=[("server.page", "assets")]))
        app.state.page = Page.render()
    app.webhooks.include_router(webhook_events.router)
    app.openapi = document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app
