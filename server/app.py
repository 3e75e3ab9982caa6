"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import structlog
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from models.errors import MochiError
from server import VERSION
from server.api.openapi import document
from server.api.routes import account, generate, operations, pages, requests
from server.api.routes import videos as videos_api
from server.api.routes import webhook_event as webhook_events
from server.api.services import Services
from server.page import Page
from server.paths import METRICS
from server.settings import ServerSettings
from server.transport.middleware import Middleware
from server.transport.responses import handle_error, handle_routing_error
from server.transport.tracing import telemetry
from server.webhooks.sender import Sender
from worker.broker.health import BrokerLog
from worker.errors import BrokerUnavailableError
from worker.store.deliveries import Deliveries
from worker.store.gateway_side import GatewayStore

INTERVAL_SECONDS = 2.0
_log = structlog.get_logger()


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
        broker_log = asyncio.create_task(
            watch_broker(services.intake, BrokerLog(settings.redis_url))
        )
        sender.start()
        yield
        broker_log.cancel()
        await sender.stop()
        await redis.aclose()

    app = FastAPI(
        title="mochi-server",
        version=VERSION,
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
        Middleware,
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


async def watch_broker(intake: GatewayStore, broker_log: BrokerLog) -> None:
    """Ask what /readyz asks, over and over, until cancelled."""
    while True:
        try:
            if broker_log.is_new:
                broker_log.warn(await intake.dangers())
            await intake.live_workers()
            broker_log.connected()
        except BrokerUnavailableError as error:
            broker_log.disconnected(error)
        except Exception:  # noqa: BLE001 (a log that falls silent says that all is well)
            _log.exception("broker.bug")
        await asyncio.sleep(INTERVAL_SECONDS)
