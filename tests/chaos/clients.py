"""The clients of an experiment: they submit at a steady rate, try again, and poll for ends."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx2

from models.catalogue import FAST_MOCHI
from models.params import MODEL
from tests.chaos.accounting import COMPLETED
from tests.chaos.history import Event, What

STEPS = {MODEL: 20, FAST_MOCHI.slug: 16}
"""By model: as many as make runs long enough to be hit."""
AGAIN_SECONDS = 0.2
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""Tries to submit one request, longer than any fault lasts."""
TIMEOUT_SECONDS = 10.0
REPLAYED = "idempotency-replayed"
DRAFT_EACH, SEVERAL_EACH = 3, 5
"""Each so many-th submit is a draft, which is finished, or two requests; some are both."""
NEW_EACH, EQUALS, ROUND = 4, 8, 40
"""Each so many-th submit is like no other. The others of a round of so many are of so many kinds:
equal ones run at the same time, and one after the other."""
FPS = (16, 24)
LORA_EACH = 3
"""One of so many submits asks for no LoRA; the others for one, or two where a worker has two."""
SAY_TWICE = 10
"""Each so many-th submit is sent once more after its answer, as if that had been lost."""


class Clients:
    """All of them, with one key.

    Attributes:
        errors: what they met on the way, by status code or kind of broken connection.
        replayed: submits that had been accepted before and were answered with the same id.
        gave_up: submits that were never acknowledged.
    """

    def __init__(
        self,
        urls: list[str],
        key: str,
        note: Callable[[Event], None],
        webhook_url: str = "",
        offers: Mapping[str, Sequence[str]] = MappingProxyType({MODEL: ()}),
        *,
        makes_drafts: bool = True,
        compares: bool = True,
    ) -> None:
        """They ask for drafts, which they finish, for several at once, and for equal videos.

        `compares`: whether all workers make the same bytes of equal requests.
        `offers`: the models that they ask for in turn; each with LoRAs, for some requests.
        """
        self.errors: Counter[str] = Counter()
        self.replayed = 0
        self.gave_up = 0
        self._turns = itertools.count()
        self._urls = list(urls)
        self._webhook = {"webhook_url": webhook_url} if webhook_url else {}
        self._offers = offers
        self._makes_drafts = makes_drafts
        self._compares = compares
        self._asked: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, tuple[str, str]] = {}
        self._finishes: dict[str, asyncio.Task[None]] = {}
        self._note = note
        self._open: dict[str, None] = {}
        self._ended: dict[str, str] = {}
        self._http = httpx2.AsyncClient(
            headers={"x-api-key": key}, timeout=TIMEOUT_SECONDS, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    @property
    def acknowledged(self) -> int:
        """Requests whose id is known."""
        return len(self._open) + len(self._ended)

    @property
    def terminal(self) -> int:
        """Requests that have ended."""
        return len(self._ended)

    @property
    def ids(self) -> set[str]:
        """Of all requests that are acknowledged."""
        return {*self._open, *self._ended}

    def move(self, old: str, new: str) -> None:
        """Call another gateway from now on, as a load balancer decides."""
        self._urls[self._urls.index(old)] = new

    def _next_url(self) -> str:
        return self._urls[next(self._turns) % len(self._urls)]

    async def submit_all(self, jobs: int, seconds: float) -> None:
        """So many requests, spread evenly over so long."""

        async def one(number: int) -> None:
            await asyncio.sleep(seconds * number / jobs)
            await self._submit(number)

        await asyncio.gather(*(one(number) for number in range(jobs)))

    async def submit_while(self, is_going_on: Callable[[], bool], pause: float) -> None:
        """One request after each `pause` in seconds."""
        async with asyncio.TaskGroup() as submits:
            for number in itertools.count():
                if not is_going_on():
                    return
                submits.create_task(self._submit(number))
                await asyncio.sleep(pause)

    async def poll(self) -> None:
        """Look at every open request, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            url = self._next_url()
            for request_id in list(self._open):
                if not await self._look(url, request_id):
                    break  # this gateway, or its broker, is away: ask another one in a moment

    async def until_quiet(self, seconds: float) -> float | None:
        """Wait, while `poll` goes on, for every open request. How long it took; None: too long."""
        started = time.monotonic()
        while self._open or not all(finish.done() for finish in self._finishes.values()):
            if time.monotonic() - started > seconds:
                return None
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def look_again(self) -> None:
        """Ask every gateway for every end once more, and fetch every video."""
        for request_id in list(self._ended):
            for url in self._urls:
                await self._look(url, request_id)
            if self._ended[request_id]:
                await self._fetch(request_id, self._ended[request_id])

    async def _submit(self, number: int) -> None:
        is_only = number % NEW_EACH == 0
        kind = number if is_only else number % EQUALS
        subject = f"chaos {number}" if is_only else f"chaos of round {number // ROUND}"
        model = [*self._offers][kind % len(self._offers)]
        body: dict[str, Any] = {"prompt": subject, "frames": 1, "steps": STEPS[model]}
        body["fps"] = FPS[kind // 2 % len(FPS)]
        loras = self._offers[model][: kind % LORA_EACH]  # none, the first, or the first two
        if loras:
            body["lora"] = dict.fromkeys(loras, 0.5)
        if self._makes_drafts and kind % DRAFT_EACH == 0:
            body["draft_steps"] = STEPS[model] // 2
        asked = {"model": model} | body
        if self._makes_drafts and number % SEVERAL_EACH == 0:
            body["count"] = 2
        times = 1 if number % SAY_TWICE else 2
        await self._say(f"/v2/{model}", body, f"chaos-{number}", times, asked)

    async def _finish(self, draft_id: str) -> None:
        """Twice, as a draft has one finish; without a key, which would see to that."""
        asked = {name: of for name, of in self._asked[draft_id].items() if name != "draft_steps"}
        await self._say(f"/v2/requests/{draft_id}/finish", {}, "", 2, asked)

    async def _say(
        self, path: str, body: dict[str, Any], key: str, times: int, asked: dict[str, Any]
    ) -> None:
        """Send it until it is accepted so many times. `asked`: what decides the video."""
        headers = {"idempotency-key": key} if key else {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            url = self._next_url() + path
            answer = await self._ask("POST", url, json=body | self._webhook, headers=headers)
            if answer is not None and answer.is_success:
                self._accept(answer, key or path, asked)
                times -= 1
            if not times:
                return
            await asyncio.sleep(AGAIN_SECONDS)
        self.gave_up += 1

    def _accept(self, answer: httpx2.Response, submit: str, asked: dict[str, Any]) -> None:
        body = answer.json()
        self.replayed += REPLAYED in answer.headers
        for place, request in enumerate(body.get("requests", [body])):
            request_id = request["request_id"]
            if request_id not in self._ended:
                self._open[request_id] = None
            self._asked[request_id] = {"place": place} | asked
            detail = f"{submit} {place}"
            self._note(Event(time.time(), What.ACKNOWLEDGED, request_id, detail=detail))

    async def _look(self, url: str, request_id: str) -> bool:
        """Note the end of a request, if it has come. False when there is no answer."""
        answer = await self._ask("GET", f"{url}/v2/requests/{request_id}")
        if answer is None:
            return False
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return True  # lost, unless another gateway knows it: the others may have ended
        body = answer.json()
        if body["status"] in {"COMPLETED", "FAILED"}:
            self._open.pop(request_id, None)
            self._ended[request_id] = body.get("output", "")
            detail = body.get("error_code", COMPLETED)
            end = json.dumps(_without_links(body), sort_keys=True)
            self._note(Event(time.time(), What.ANSWERED, request_id, detail=detail, body=end))
            if "draft" in body and request_id not in self._finishes:
                self._finishes[request_id] = asyncio.create_task(self._finish(request_id))
        return True

    async def _fetch(self, request_id: str, url: str) -> None:
        answer = await self._ask("GET", url)
        if answer is None or not answer.content:
            detail = f"completed, and its video cannot be had from {url.partition('?')[0]}"
            self._note(Event(time.time(), What.DAMAGED, request_id, detail=detail))
        elif self._compares:
            self._compare(request_id, hashlib.sha256(answer.content).hexdigest())

    def _compare(self, request_id: str, digest: str) -> None:
        asked = json.dumps(self._asked[request_id], sort_keys=True)
        first, its = self._digests.setdefault(asked, (request_id, digest))
        if its != digest:
            detail = f"not the bytes of {first}, which asked for the same"
            self._note(Event(time.time(), What.DAMAGED, request_id, detail=detail))

    async def _ask(self, verb: str, url: str, **options: Any) -> httpx2.Response | None:
        """The answer, or None after an error, which is counted."""
        try:
            answer = await self._http.request(verb, url, **options)
        except httpx2.TransportError as error:
            self.errors[type(error).__name__] += 1
            return None
        if answer.is_success or answer.status_code in ENDS:
            return answer
        self.errors[str(answer.status_code)] += 1
        return None


ENDS = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND}
"""Statuses that tell of the request, and not of the gateway."""


def _without_links(body: dict[str, Any]) -> dict[str, Any]:
    """An end as every gateway tells it: links are on the host that was called."""
    plain = {name: value for name, value in body.items() if name != "output"}
    if "draft" in plain:
        plain["draft"] = body["draft"]["steps"]
    if "video" in plain:
        plain["video"] = {name: value for name, value in body["video"].items() if name != "url"}
    return plain
