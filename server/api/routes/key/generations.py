"""A key's requests over weeks, in the shape in which the `segmind` SDK asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.request.catalogue import CATALOGUE
from models.request.params import MODEL
from server.api.call import Call
from server.api.listings import (
    GenerationRow,
    GenerationsBody,
    HistoryBody,
    HistoryRow,
    RecentBody,
)
from server.api.openapi import REQUEST_ID, errors
from server.errors import BadQueryError, ForbiddenError
from server.keys.lookup import Scope
from server.keys.times import from_ms, to_ms
from server.transport.parameters import Choice, Day, Text, WholeNumber, documented
from server.transport.responses import answer
from worker.billing import from_millionths
from worker.errors import StorageError, VideoGoneError
from worker.job import Status
from worker.store.reports.history import Entry

ROWS = 20
"""Of the latest, and of a page without `per_page`."""
WINDOW = timedelta(days=7)
LONGEST_WINDOW = timedelta(days=31)

PAGE = WholeNumber(name="page", description="1 is the first.", least=1, most=99_999, default=1)
PER_PAGE = WholeNumber(
    name="per_page", description="Rows of a page.", least=1, most=100, default=ROWS
)
START_DATE = Day(name="start_date", description="The first day of submits, in UTC.")
END_DATE = Day(name="end_date", description="The last day, included.")
FROM_DATE = Day(name="from_date", description="The first day of submits; 7 before the last.")
TO_DATE = Day(name="to_date", description="The last day, included, 31 later at most; today.")
MODEL_NAME = Text(
    name="model_name",
    description=f"A part of a model's slug, such as `{MODEL}`; others find nothing.",
)
STATUS = Choice(
    name="status",
    description="Only requests in this state; PENDING has not ended.",
    choices=("COMPLETED", "FAILED", "PENDING"),
)
SORT_BY = Choice(
    name="sort_by",
    description="The submit, the name of the model, or the credits.",
    choices=("model_created", "model_name", "credits_deduction"),
    default="model_created",
)
SORT_ORDER = Choice(
    name="sort_order", description="Down or up.", choices=("desc", "asc"), default="desc"
)
USER_ID = Text(name="user_id", description="The id of your own key.")
USER_EMAIL = Text(name="user_email", description="Refused: a key has none.")

router = APIRouter(prefix="/inference-request", tags=["History"])
_log = structlog.get_logger()


@router.get(
    "/recent-generations",
    response_model=RecentBody,
    responses=errors(400, 401, 403, 500, 502),
    openapi_extra={"parameters": documented(MODEL_NAME)},
)
async def get_recent_generations(request: Request) -> Response:
    """The key's latest 20 requests that have made a video."""
    call = Call.of(request)
    _require_reader(call)
    history = call.services.history
    slugs = _asked_models(call)
    shown = await history.latest_videos(call.key.key_id, ROWS, slugs) if slugs else []
    urls = _VideoUrls(call)
    return answer(RecentBody(generations=[await _generation(urls, entry) for entry in shown]))


@router.get(
    "/generations",
    response_model=GenerationsBody,
    responses=errors(400, 401, 403, 500, 502),
    openapi_extra={"parameters": documented(PAGE, START_DATE, END_DATE, MODEL_NAME, USER_ID)},
)
async def list_generations(request: Request) -> Response:
    """The key's requests that have made a video, the newest first, 20 a page."""
    call = Call.of(request)
    paging = _Paging(PAGE.read(request), ROWS)
    first, last = START_DATE.read(request), END_DATE.read(request)
    if first and last and last < first:
        raise BadQueryError(f"`{END_DATE.name}` must not be before `{START_DATE.name}`.")
    entries = await _entries(call, first, last)
    found = [entry for entry in entries if entry.status is Status.COMPLETED]
    urls = _VideoUrls(call)
    rows = [await _generation(urls, entry) for entry in paging.of(found)]
    return answer(GenerationsBody(generations=rows, **paging.fields(len(found))))


@router.get(
    "/request-history",
    response_model=HistoryBody,
    responses=errors(400, 401, 403, 500, 502),
    openapi_extra={
        "parameters": documented(
            *(PAGE, PER_PAGE, FROM_DATE, TO_DATE, MODEL_NAME),
            *(STATUS, USER_ID, USER_EMAIL, SORT_BY, SORT_ORDER),
        )
    },
)
async def list_history(request: Request) -> Response:
    """The key's requests, failed and unfinished ones too, with parameters and credits."""
    call = Call.of(request)
    paging = _Paging(PAGE.read(request), PER_PAGE.read(request))
    status, sort_by = STATUS.read(request), SORT_BY.read(request)
    is_ascending = SORT_ORDER.read(request) == "asc"
    entries = await _entries(call, *await _window(call))
    found = [entry for entry in entries if status in {"", _status(entry)}]
    if sort_by == "credits_deduction":
        found.sort(key=lambda entry: entry.cost, reverse=True)
    if is_ascending:
        found.reverse()
    urls = _VideoUrls(call)
    rows = [await _history_row(urls, entry) for entry in paging.of(found)]
    return answer(HistoryBody(generations=rows, **paging.fields(len(found))))


@router.get(
    "/request-history/{request_id}",
    response_model=HistoryRow,
    responses=errors(401, 403, 404, 500, 502),
    openapi_extra={"parameters": documented(REQUEST_ID)},
)
async def get_history(request: Request) -> Response:
    """One of the key's requests, of any age that the history has."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    entry = await call.services.history.find(call.request_id, call.key.key_id)
    return answer(await _history_row(_VideoUrls(call), entry))


@dataclass(frozen=True)
class _Paging:
    page: int
    per_page: int

    def of(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        return entries[(self.page - 1) * self.per_page : self.page * self.per_page]

    def fields(self, total: int) -> dict[str, int]:
        pages = -(-total // self.per_page)
        return {
            "page": self.page,
            "per_page": self.per_page,
            "total": total,
            "total_pages": pages,
        }


async def _window(call: Call) -> tuple[date, date]:
    """The days of `request-history`."""
    last = TO_DATE.read(call.request) or await call.services.usage.today()
    first = FROM_DATE.read(call.request) or last - WINDOW
    if not timedelta() <= last - first <= LONGEST_WINDOW:
        raise BadQueryError(
            f"`{TO_DATE.name}` must be 0 to {LONGEST_WINDOW.days} days after "
            f"`{FROM_DATE.name}`. Without it, today is taken."
        )
    return first, last


async def _entries(call: Call, first: date | None = None, last: date | None = None) -> list[Entry]:
    """The key's requests with the model, submitted in these days; the newest first.

    Raises:
        ForbiddenError: see `_require_reader`.
    """
    _require_reader(call)
    since_ms = to_ms(datetime.combine(first, time(), UTC)) if first else 0
    slugs = _asked_models(call)
    if not slugs:
        return []
    entries = await call.services.history.entries(call.key.key_id, since_ms=since_ms)
    return [
        entry
        for entry in entries
        if since_ms <= entry.created_at
        and (not last or from_ms(entry.created_at).date() <= last)
        and entry.model in slugs
    ]


def _asked_models(call: Call) -> set[str]:
    part = MODEL_NAME.read(call.request)
    return {slug for slug in CATALOGUE if part in slug}


def _require_reader(call: Call) -> None:
    """Raise ForbiddenError if the key may not read, or the user is another one."""
    call.key.require(Scope.READ)
    if USER_ID.read(call.request) not in {"", call.key.key_id}:
        raise ForbiddenError(
            f"`{USER_ID.name}` must be the id of your own key, or left out: each key sees only "
            "its own requests."
        )
    if USER_EMAIL.read(call.request):
        raise ForbiddenError(f"`{USER_EMAIL.name}` must be left out: a key has no address.")


class _VideoUrls:
    """Links to the videos of one response."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._can_sign = True

    async def of(self, entry: Entry) -> str | None:
        """None if there is no video, or its link cannot be signed."""
        if not self._can_sign or entry.job is None or entry.job.status is not Status.COMPLETED:
            return None
        links = self._call.links(entry.request_id)
        try:
            return await self._call.services.video_links.url(entry.job, links)
        except StorageError as error:
            # A store that does not answer takes seconds for each link.
            self._can_sign = isinstance(error, VideoGoneError)
            _log.warning("history.no_link", request_id=entry.request_id, reason=str(error))
            return None


async def _generation(urls: _VideoUrls, entry: Entry) -> GenerationRow:
    return GenerationRow(
        request_id=entry.request_id,
        model_name=entry.model,
        generation_url=await urls.of(entry),
        credits_deduction=_credits(entry),
        latency_ms=entry.latency_ms,
        prompt=entry.params.get("prompt"),
        parameters=entry.params,
        created_at=from_ms(entry.created_at),
    )


async def _history_row(urls: _VideoUrls, entry: Entry) -> HistoryRow:
    return HistoryRow(
        request_id=entry.request_id,
        model_name=entry.model,
        model_status=_status(entry),
        credits_deduction=_credits(entry),
        request_body=entry.params,
        generation_url=await urls.of(entry),
        latency_ms=entry.latency_ms,
        model_created=from_ms(entry.created_at),
        error=entry.error or None,
        energy_joules=None if entry.energy_mj is None else entry.energy_mj / 1000,
        cached=True if entry.cached else None,
    )


def _status(entry: Entry) -> Literal["COMPLETED", "FAILED", "PENDING"]:
    match entry.status:
        case Status.COMPLETED:
            return "COMPLETED"
        case Status.FAILED:
            return "FAILED"
        case _:
            return "PENDING"


def _credits(entry: Entry) -> float:
    return float(from_millionths(entry.cost))
