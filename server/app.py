"""The gateway as an ASGI application: puts its parts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib.util import find_spec

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute
from opentelemetry.trace import TracerProvider
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from models.version import this_build
from server.api.links import VideoLinks
from server.api.openapi import document, operation_id
from server.api.poller import Poller
from server.api.routes import (
    event_stream,
    finish,
    generate,
    models,
    operations,
    pages,
    requests,
    videos,
    webhook_event,
)
from server.api.routes.key import account, generations, webhooks
from server.api.services import Canceller, ServedModels, Services
from server.keys.lookup import KeyLookup
from server.page import Page
from server.page.files import read_page_files
from server.paths import METRICS, VERSION_PATH, normalise
from server.settings import ServerSettings
from server.transport.middleware import Middleware
from server.transport.tracing import telemetry
from server.transport.traffic import Traffic
from server.webhooks.address_rules import Guard
from server.webhooks.caller import Caller
from server.webhooks.sender import Sender
from worker.broker.connection import AsyncClient
from worker.broker.health import BrokerLog
from worker.errors import BrokerUnavailableError
from worker.outputs.factory import open_outputs
from worker.outputs.store_check import StoreCheck
from worker.process.shutdown import end_tasks
from worker.store.gateway_side import GatewayStore
from worker.store.reports.forecast import Forecaster
from worker.store.reports.history import History
from worker.store.reports.statistics import Statistics
from worker.store.reports.usage import UsageStore
from worker.store.webhooks.deliveries import Deliveries
from worker.store.webhooks.standing import StandingWebhooks

CHECK_SECONDS = 2.0
"""Between two health checks of the broker, and of the store of videos."""
OUTPUTS_PATIENCE_SECONDS = 10.0
"""For a call to the output store: a client waits, and any proxy between waits longer."""
DESCRIPTION = (
    "Text to video with Mochi 1, on your own machines. Routes need an API key, in `x-api-key` or "
    "as a bearer token. Exceptions: the health probes, `/version`, and links to videos and events, "
    "which are signed."
)
_ROUTERS = [
    module.router
    for module in (
        *(generate, finish, requests, event_stream, videos),
        *(models, generations, webhooks, account, operations),
    )
]

_log = structlog.get_logger()


class Gateway(FastAPI):
    """Knows each path by one spelling only; FastAPI traces a request before all middleware."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            normalise(scope)
        await super().__call__(scope, receive, send)


def create_app(
    settings: ServerSettings,
    broker: AsyncClient,
    *,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Put the gateway together. `broker` is closed with it.

    Raises:
        OutputsUnusableError: a variable for the store of videos has a bad value.
    """
    services = _services(settings, broker)
    sender = Sender(
        Deliveries(broker, retention_seconds=settings.retention_seconds),
        Caller(services.webhook_guard),
        partial(webhook_event.webhook_body, video_links=services.video_links),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        broker_log = BrokerLog(settings.redis_url)
        checks = [
            asyncio.create_task(check_broker(services, broker_log)),
            asyncio.create_task(check_store(services)),
        ]
        sender.start()
        async with run_tools():
            yield
        await end_tasks(checks)
        await sender.stop()
        await broker.aclose()

    app = Gateway(
        title="mochi-server",
        version=this_build().version,
        description=DESCRIPTION,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=telemetry(tracer_provider),
        generate_unique_id_function=operation_id,
    )
    app.state.services = services
    # Instead of FastAPI's own stack, which costs CPU time: `Middleware` does its work.
    app.middleware_stack = Middleware(
        app.router,
        key_lookup=KeyLookup(broker),
        public_url=settings.public_url,
        traffic=services.traffic,
        trusts_proxies=bool(settings.trusted_proxies),
        origins=settings.origins,
        also_public=_also_public(settings),
    )
    _add_routes(app, with_pages=settings.docs)
    run_tools = _add_tools(app, settings)
    app.openapi = document(app, settings.public_url)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _also_public(settings: ServerSettings) -> frozenset[str]:
    are_public = {METRICS: settings.metrics_public, VERSION_PATH: settings.docs}
    return frozenset(path for path, is_public in are_public.items() if is_public)


def _services(settings: ServerSettings, broker: AsyncClient) -> Services:
    store = GatewayStore(
        broker,
        most_waiting=settings.most_waiting,
        retention_seconds=settings.retention_seconds,
    )
    outputs = open_outputs(settings, patience_seconds=OUTPUTS_PATIENCE_SECONDS)
    return Services(
        settings=settings,
        models=ServedModels(settings.served),
        store=store,
        forecaster=Forecaster(broker),
        statistics=Statistics(broker),
        usage=UsageStore(broker),
        history=History(
            broker, store, days=settings.history_days, with_prompts=settings.history_prompts
        ),
        standing=StandingWebhooks(broker, retention_seconds=settings.retention_seconds),
        poller=Poller(store),
        canceller=Canceller(store),
        outputs=outputs,
        store_check=StoreCheck(outputs, store),
        video_links=VideoLinks(
            outputs,
            store,
            retention_seconds=settings.retention_seconds,
            public_url=settings.public_url,
        ),
        webhook_guard=Guard(settings.webhook_allow),
        traffic=Traffic(),
    )


def _add_routes(app: FastAPI, *, with_pages: bool) -> None:
    routers = [*_ROUTERS, *([pages.router] if with_pages else [])]
    app.state.routes = routes = [
        route for router in routers for route in router.routes if isinstance(route, APIRoute)
    ]
    for route in routes:
        route.app = _without_dependencies(route.endpoint)
        route.unique_id = operation_id(route)
    app.router.routes += routes
    if with_pages:
        app.mount("/docs", StaticFiles(packages=[("fastapi_swagger", "resources")]))
        app.state.page, app.state.page_files = Page.render(), read_page_files()
    app.webhooks.include_router(webhook_event.router)


def _add_tools(
    app: FastAPI, settings: ServerSettings
) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Serve `/mcp` where its extra is installed. Returns what runs while the gateway does."""
    if find_spec("mcp") is None:
        return nullcontext
    from server.api.routes.mcp_tool import McpEndpoint  # noqa: PLC0415 (an extra, of a second)

    endpoint = McpEndpoint(settings.body_bytes)
    app.router.routes.append(endpoint.route)
    return endpoint.run


def _without_dependencies(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Call a route as it is: FastAPI documents it, and has no parameter or model to resolve."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return app


async def check_broker(services: Services, broker_log: BrokerLog) -> None:
    """Log when the broker falls silent, answers again, or may lose requests."""
    store = services.store
    while True:
        try:
            if broker_log.is_new:
                broker_log.warn(await store.dangers())
            # A replica or a cluster refuses it, and not the next.
            services.models.saw(await store.live_workers())
            await store.check_memory()
            broker_log.connected()
        except BrokerUnavailableError as error:
            broker_log.disconnected(error)
        except Exception:  # noqa: BLE001 (without this loop the log would not tell of an outage)
            _log.exception("broker.bug")
        await asyncio.sleep(CHECK_SECONDS)


async def check_store(services: Services) -> None:
    """Compare the gateway's store with the workers'. Not in `check_broker`: a store may hang."""
    while True:
        try:
            await services.store_check.look()
        except BrokerUnavailableError:
            pass  # `check_broker` logs it
        except Exception:  # noqa: BLE001 (the next look may succeed)
            _log.exception("outputs.bug")
        await asyncio.sleep(CHECK_SECONDS)
