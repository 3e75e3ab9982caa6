"""Health, readiness, version and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from models.request.params import MODEL
from models.version import this_build
from server.api.call import Call
from server.api.metrics import Scrape
from server.api.openapi import METRICS_TEXT, errors
from server.api.schemas import EngineBody, HealthBody, ReadyBody, VersionBody, WorkersState
from server.api.services import ServedModels
from server.api.submit.loras import offered
from server.errors import NO_WORKER
from server.keys.lookup import Scope
from server.transport.responses import answer
from worker.errors import BrokerUnavailableError, DiskFullError
from worker.store.presence import LiveWorker

router = APIRouter(tags=["Operations"])


@router.get("/healthz", response_model=HealthBody, responses=errors(500))
async def get_health(_request: Request) -> Response:
    """The process is alive."""
    return answer(HealthBody())


@router.get(
    "/readyz",
    response_model=ReadyBody,
    responses={503: {"model": ReadyBody, "description": "Not ready"}, **errors(500)},
)
async def get_readiness(request: Request) -> Response:
    """Whether a request would be run now: the broker answers and a worker has its weights."""
    services = Call.of(request).services
    missing: list[str] = []
    workers: list[LiveWorker] = []
    state: WorkersState = "unknown"
    lack = ""
    if not services.settings.outputs:  # else workers alone write to their disks
        try:
            await run_in_threadpool(services.outputs.check_space)
        except DiskFullError as error:
            missing.append(str(error))  # first: an embedded broker dies of it
    try:
        workers = await services.store.live_workers()
        await services.store.check_memory()
        if services.store_check.problem:
            missing.append(str(services.store_check.problem))
        services.models.saw(workers)
        is_loading = not workers and await services.store.is_loading()
        state, lack = _presence(workers, is_loading=is_loading)
    except BrokerUnavailableError as error:
        silent = "The broker does not answer: check MOCHI_REDIS_URL."
        missing.append(str(error) if error.has_answered else silent)
    lacks = [lack] if lack else _unserved(services.models, workers)
    body = ReadyBody(
        status="not ready" if missing else "no worker" if lack else "ready",
        workers=state,
        live_workers=sum(not worker.pause for worker in workers),
        missing=[*missing, *lacks],
    )
    accepts_all = body.status == "ready" or (
        body.status == "no worker" and services.settings.wait_for_worker
    )
    return answer(body, 200 if accepts_all else 503)


def _presence(workers: list[LiveWorker], *, is_loading: bool) -> tuple[WorkersState, str]:
    """The state of the workers, and what requests lack with it; empty for nothing."""
    if any(not worker.pause for worker in workers):
        return "ready", ""
    if workers:
        return "paused", f"All workers wait. {workers[0].pause}"
    if is_loading:
        return "loading", "No live worker yet: one is loading the model."
    return "none", NO_WORKER


def _unserved(models: ServedModels, workers: list[LiveWorker]) -> list[str]:
    """Models and LoRAs without a worker. The gateway is ready while one model has some."""
    if not workers:
        return []
    unserved = [
        f"No live worker takes requests for `{slug}`."
        for slug in models.slugs
        if not any(worker.takes(slug) for worker in workers)
    ]
    gone = models.loras.difference(offered(workers))
    return unserved + [f"No live worker has the LoRA `{name}` any more." for name in sorted(gone)]


@router.get("/version", response_model=VersionBody, responses=errors(500))
async def get_version(request: Request) -> Response:
    """Version and commit, the engines of the live workers, and where links lead."""
    services = Call.of(request).services
    try:
        workers = await services.store.live_workers()
    except BrokerUnavailableError:
        workers = []  # the version is known without it
    engines = [EngineBody.model_validate(worker.engine) for worker in workers]
    origins = services.video_links.origins()
    build = this_build()
    body = VersionBody(
        version=build.version,
        commit=build.commit or None,
        dirty=build.is_dirty if build.commit else None,
        model=MODEL,
        models=services.models.slugs,
        engines=engines,
        loras=offered(workers) or None,
        link_origins=origins,
    )
    return answer(body)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: METRICS_TEXT, **errors(401, 403, 500, 502)},
)
async def get_metrics(request: Request) -> Response:
    """Metrics for Prometheus. Needs a key with the scope `admin`."""
    call = Call.of(request)
    if not call.services.settings.metrics_public:
        call.key.require(Scope.ADMIN)
    try:
        survey, devices = await call.services.statistics.read()
    except BrokerUnavailableError:
        survey, devices = None, {}  # the figures of this gateway are known without it
    scrape = Scrape(this_build().version, call.services.traffic, survey, devices)
    return Response(scrape.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
