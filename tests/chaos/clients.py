"""The clients of an experiment: they submit at a steady rate, try again, and poll for ends."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx2

from models.request.catalogue import FAST_MOCHI
from models.request.params import MODEL, GenerateParams
from tests.chaos.accounting import COMPLETED
from tests.chaos.history import Event, What

STEPS = {MODEL: 20, FAST_MOCHI.slug: 16}
"""By model: as many as make runs long enough to be hit."""
AGAIN_SECONDS = 0.2
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""Tries to submit one request, longer than any fault lasts."""
TIMEOUT_SECONDS = 10.0
SEED: int = GenerateParams.model_fields["seed"].default
REPLAYED = "idempotency-replayed"
DRAFT_EACH, SEVERAL_EACH = 3, 5
"""In each so many-th block all are drafts, which are finished; each so many-th submit is two
requests; some are both."""
BLOCK, KINDS, REPEATS = 6, 6, 2
"""The first of a block of so many submits is like no other. The others are equal, for several keys,
so that they wait for one run, and so many blocks later they are asked for again; after so many
times a round is over, and what they ask for is new."""
AT_ONCE = 3
"""So many of the equal submits of a block."""
FPS = (16, 24)
"""Of all in a block but the last, which wants the same frames, and of that one."""
LORAS_EACH = 3
"""One of so many pairs of blocks asks for no LoRA; the others for one, or two where a worker has
two."""
SAY_TWICE = 10
"""Each so many-th submit is sent once more after its answer, as if that had been lost."""


@dataclass(frozen=True)
class _Submit:
    """What is sent until it is accepted.

    Attributes:
        key: the API key.
        asked: what decides the video.
        times: as often it is to be accepted, as one request.
        once: an idempotency key, or none.
    """

    path: str
    key: str
    asked: dict[str, Any]
    times: int
    body: dict[str, Any] = field(default_factory=dict)
    once: str = ""


class Clients:
    """All of them, each with its key.

    Attributes:
        errors: what they met on the way, by status code, with the parameters that a 400 names, or
            by kind of broken connection.
        replayed: submits that had been accepted before and were answered with the same id.
        gave_up: submits that were never acknowledged.
    """

    def __init__(
        self,
        urls: list[str],
        keys: Sequence[str],
        note: Callable[[Event], None],
        webhook_url: str = "",
        offers: Mapping[str, Sequence[str]] = MappingProxyType({MODEL: ()}),
        *,
        makes_drafts: bool = True,
        compares: bool = True,
    ) -> None:
        """They ask for drafts, which they finish, for several at once, and for equal videos.

        `keys`: API keys, by which they take turns.
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
        self._keys = keys
        self._asked: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}
        self._finished: set[str] = set()
        self._digests: dict[str, tuple[str, str]] = {}
        self._finishes: dict[str, asyncio.Task[None]] = {}
        self._note = note
        self._open: dict[str, None] = {}
        self._ended: dict[str, str] = {}
        self._http = httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)

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

    @property
    def kinds(self) -> dict[str, int]:
        """How many requests were accepted, by what is special about them; some are several."""
        asked = self._asked.values()
        return {
            "draft": sum("draft_steps" in its for its in asked),
            "finish": len(self._finished),
            "LoRA": sum("lora" in its for its in asked),
        }

    def ids_of(self, key: str) -> set[str]:
        """Of the requests that are acknowledged to an API key."""
        return {request_id for request_id, owner in self._owners.items() if owner == key}

    def move(self, old: str, new: str) -> None:
        """Call another gateway from now on, as a load balancer decides."""
        self._urls[self._urls.index(old)] = new

    def _next_url(self) -> str:
        return self._urls[next(self._turns) % len(self._urls)]

    async def submit_all(self, jobs: int, seconds: float) -> None:
        """So many requests, spread over so long. The first equal ones of a block come at once."""

        async def one(number: int) -> None:
            place = number % BLOCK
            turn = number - place + 1 if 0 < place <= AT_ONCE else number
            await asyncio.sleep(seconds * turn / jobs)
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
        block, place = divmod(number, BLOCK)
        subject = f"round {block // (KINDS * REPEATS)} of {block % KINDS}" if place else f"{number}"
        model = [*self._offers][block % len(self._offers)]
        body: dict[str, Any] = {"prompt": f"chaos {subject}", "frames": 1, "steps": STEPS[model]}
        body["fps"] = FPS[place == BLOCK - 1]
        loras = self._offers[model][: block // 2 % LORAS_EACH]  # none, the first, or the first two
        if loras:
            body["lora"] = dict.fromkeys(loras, 0.5)
        if self._makes_drafts and block % DRAFT_EACH == 0:
            body["draft_steps"] = STEPS[model] // 2
        asked = {"model": model} | body
        if self._makes_drafts and number % SEVERAL_EACH == 0:
            body["count"] = 2
        times = 1 if number % SAY_TWICE else 2
        key = self._keys[number % len(self._keys)]
        await self._say(_Submit(f"/v2/{model}", key, asked, times, body, f"chaos-{number}"))

    async def _finish(self, draft_id: str) -> None:
        """Twice, as a draft has one finish; without a key, which would see to that."""
        asked = {name: of for name, of in self._asked[draft_id].items() if name != "draft_steps"}
        path = f"/v2/requests/{draft_id}/finish"
        self._finished |= await self._say(_Submit(path, self._owners[draft_id], asked, times=2))

    async def _say(self, submit: _Submit) -> set[str]:
        """Send it until it is accepted so often. Returns the ids of its requests."""
        headers = {"idempotency-key": submit.once} if submit.once else {}
        times = submit.times
        ids: set[str] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            url, body = self._next_url() + submit.path, submit.body | self._webhook
            answer = await self._ask("POST", url, submit.key, json=body, headers=headers)
            if answer is not None and answer.is_success:
                ids |= self._accept(answer, submit)
                times -= 1
            if not times:
                return ids
            await asyncio.sleep(AGAIN_SECONDS)
        self.gave_up += 1
        return ids

    def _accept(self, answer: httpx2.Response, submit: _Submit) -> set[str]:
        """Note the ids in it."""
        body = answer.json()
        self.replayed += REPLAYED in answer.headers
        ids = [request["request_id"] for request in body.get("requests", [body])]
        for place, request_id in enumerate(ids):
            self._owners[request_id] = submit.key
            if request_id not in self._ended:
                self._open[request_id] = None
            self._asked[request_id] = its = {"place": place} | submit.asked
            what, detail = What.ACKNOWLEDGED, f"{submit.once or submit.path} {place}"
            self._note(Event(time.time(), what, request_id, detail=detail, body=json.dumps(its)))
        return {*ids}

    async def _look(self, url: str, request_id: str) -> bool:
        """Note the end of a request, if it has come. False when there is no answer."""
        answer = await self._ask("GET", f"{url}/v2/requests/{request_id}", self._owners[request_id])
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
        answer = await self._ask("GET", url, self._owners[request_id])
        if answer is None or not answer.content:
            detail = f"completed, and its video cannot be had from {url.partition('?')[0]}"
            self._note(Event(time.time(), What.DAMAGED, request_id, detail=detail))
            return
        if self._compares:
            self._compare(request_id, answer.content)

    def _compare(self, request_id: str, video: bytes) -> None:
        asked = self._asked[request_id]
        if not is_of(asked, video):
            detail = f"its video is of something else than {asked}"
            self._note(Event(time.time(), What.DAMAGED, request_id, detail=detail))
        digest = hashlib.sha256(video).hexdigest()
        same = json.dumps(asked, sort_keys=True)
        first, its = self._digests.setdefault(same, (request_id, digest))
        if its != digest:
            detail = f"not the bytes of {first}, which asked for the same"
            self._note(Event(time.time(), What.DAMAGED, request_id, detail=detail))

    async def _ask(
        self,
        verb: str,
        url: str,
        key: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> httpx2.Response | None:
        """The answer, or None after an error, which is counted. `key`: the API key."""
        headers = {"x-api-key": key, **headers}
        try:
            answer = await self._http.request(verb, url, headers=headers, **options)
        except httpx2.TransportError as error:
            self.errors[type(error).__name__] += 1
            return None
        if answer.is_success or answer.status_code in ENDS:
            return answer
        self.errors[_named(answer)] += 1
        return None


ENDS = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND}
"""Statuses that tell of the request, and not of the gateway."""


def _named(answer: httpx2.Response) -> str:
    """Its status, and which parameters are wrong: a LoRA is, while no worker with it lives."""
    wrong = answer.json()["parameters"] if answer.status_code == HTTPStatus.BAD_REQUEST else {}
    return " ".join([str(answer.status_code), *sorted(wrong)])


def is_of(asked: Mapping[str, Any], video: bytes) -> bool:
    """Whether the parameters in the comment of a mock's MP4 are those that were asked for."""
    start = video.find(b'{"mock"')
    if start < 0:
        return False
    told, _ = json.JSONDecoder().raw_decode(video[start:].decode(errors="replace"))
    told = {"model": MODEL, "lora": None} | told
    wanted = {"lora": None, "seed": SEED + asked["place"]} | dict(asked)
    return all(told[name] == its for name, its in wanted.items() if name in told)


def _without_links(body: dict[str, Any]) -> dict[str, Any]:
    """An end as every gateway tells it: links are on the host that was called."""
    plain = {name: value for name, value in body.items() if name != "output"}
    if "draft" in plain:
        plain["draft"] = body["draft"]["steps"]
    if "video" in plain:
        plain["video"] = {name: value for name, value in body["video"].items() if name != "url"}
    return plain
