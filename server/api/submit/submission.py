"""Reads and accepts a submit: parameters, webhook, mock scenario, idempotency key and dry run."""

from __future__ import annotations

import json
import random
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import structlog
from starlette.requests import Request

from models.errors import InvalidParametersError, MochiError
from models.mock.scenario import FORM as SCENARIO_FORM
from models.mock.scenario import LATE_VALIDATION, PAYMENT_REQUIRED, SCENARIO, Scenario
from models.request.catalogue import MOCHI, Model
from models.request.params import REFUSED_PROMPT, RequestParams, parse_params, valid_part
from server.api.call import Call
from server.api.submit.hints import finish_hints, query_hints, submit_hints
from server.api.submit.loras import lacking_loras
from server.api.submit.plan import FIELDS, WHOLE, Plan
from server.api.submit.problems import Problems
from server.errors import BadHeaderError, BadQueryError, MockPaymentError
from server.transport.parameters import Flag, SingleText, Text, unknown_query
from server.transport.responses import REPLAYED, ignored_parameters, rate_limit
from server.webhooks.url import FIELD, MOST_LENGTH, webhook_url
from worker.billing import Price
from worker.job import Job
from worker.pace import Work
from worker.store.submits import Accepted, Idempotency, NewRequest, cache_key_of, frames_key_of

DRY_RUN = Flag(
    name="dry_run",
    description=(
        "`true` or `1`: queue nothing; answer with the price, and whether and when the request "
        "would run (`DryRunBody`)."
    ),
)
IDEMPOTENCY_KEY = SingleText(
    name="Idempotency-Key",
    place="header",
    description=(
        "The same key with the same body returns the first request, as long as that is kept. A "
        "blocking call with a key is not cancelled when its client hangs up."
    ),
    least=1,
    most=255,
)
WEBHOOK_URL = Text(
    name=FIELD,
    description=(
        "Receives a signed POST when the request ends; see the webhooks of this document. An "
        "http or https URL with a public address."
    ),
    limits={"maxLength": MOST_LENGTH},
)
MOCK_SCENARIO = Text(
    name=SCENARIO,
    place="header",
    description=(
        "An outcome to test a client against. Mock weights only; ignored with real ones. May "
        "also be a field of this name in the body."
    ),
    limits={"pattern": SCENARIO_FORM},
)

_QUERY = (DRY_RUN, WEBHOOK_URL)
OPTIONAL = frozenset(RequestParams.model_fields) - {"prompt"} | {FIELD, SCENARIO} | FIELDS
"""Fields of a body that may be null."""
_seeds = random.SystemRandom()
_log = structlog.get_logger()


@dataclass(frozen=True)
class Submission:
    """A valid submit by an authorised key.

    Attributes:
        body: what the idempotency key is compared with: the fields as they came, and the webhook
            URL, the mock scenario and a model that is not the default one wherever they came.
        ignored: names of the body and the query that are not known.
        hints: a message for each, for the warnings of the result.
        record_fields: further fields of the job record; see `Job`.
        plan: how it runs.
        draft: the request that it finishes; None where it begins one.
    """

    call: Call
    body: Mapping[str, Any]
    params: RequestParams
    ignored: list[str]
    hints: list[str]
    record_fields: Mapping[str, str]
    idempotency_key: str | None
    is_dry_run: bool
    plan: Plan = WHOLE
    draft: Job | None = None

    @classmethod
    async def read(
        cls,
        call: Call,
        body: dict[str, Any],
        parameters: Mapping[str, Any] | None = None,
        *,
        model: Model = MOCHI,
        takes_plan: bool = False,
    ) -> Self:
        """Validate a body, and the query and headers that came with it.

        Args:
            call: of a key that may submit.
            body: as it came.
            parameters: the body in the names of `RequestParams`; None if it has them already.
            model: what is asked for.
            takes_plan: whether the route answers drafts and several requests.

        Raises:
            InvalidParametersError: a field is wrong.
            BadHeaderError, BadQueryError: a header or a query parameter is wrong.
            BrokerUnavailableError: there is a mock scenario, and the workers are not known.
            MockPaymentError: it is the scenario.
        """
        problems = Problems()
        is_dry_run = DRY_RUN.read(call.request)
        scenario_header = _scenario_header(call.request, body)
        body = body | scenario_header
        if parameters is None:
            parameters = body
        parameters = {**parameters, **scenario_header}
        scenario_fields = await _scenario_fields(call, body, problems)
        try:
            params, unknown = parse_params(parameters, model.request)
        except InvalidParametersError as error:
            params, unknown = valid_part(parameters, model.request, error.parameters or ()), []
            if scenario_fields.get("scenario") == LATE_VALIDATION:
                scenario_fields["scenario"] += f":{error}"
                params = model.request(prompt=REFUSED_PROMPT)
            else:
                problems.note(error)
        else:
            if scenario_fields.get("scenario") == LATE_VALIDATION:
                del scenario_fields["scenario"]  # the hosted API makes the video, too
        known = {FIELD, *FIELDS, *([SCENARIO] if scenario_fields else [])}
        ignored = [name for name in unknown if name not in known]
        unread = unknown_query(call.request, *_QUERY)
        plan = (Plan.read if takes_plan else Plan.refuse)(body, params, problems)
        webhook_fields = _webhook_fields(call, body, problems)
        await problems.refuse(call, params)
        return cls(
            call=call,
            body=body | _url_of(webhook_fields) | _model_of(model),
            params=params,
            ignored=[*dict.fromkeys(ignored + unread)],
            hints=submit_hints(ignored, body, model) + _query_hints(unread, OPTIONAL | {"prompt"}),
            record_fields={**scenario_fields, **webhook_fields},
            idempotency_key=IDEMPOTENCY_KEY.read(call.request),
            is_dry_run=is_dry_run,
            plan=plan,
        )

    @classmethod
    async def read_finish(cls, call: Call, body: dict[str, Any], draft: Job) -> Self:
        """Validate the body of a finish, and the query and headers that came with it.

        Raises:
            BadHeaderError, BadQueryError, BrokerUnavailableError, MockPaymentError: as `read`.
            InvalidParametersError: the webhook or the scenario is wrong.
        """
        problems = Problems()
        body = body | _scenario_header(call.request, body)
        scenario_fields = await _scenario_fields(call, body, problems)
        webhook_fields = _webhook_fields(call, body, problems)
        await problems.refuse(call)
        if scenario_fields.get("scenario") == LATE_VALIDATION:
            del scenario_fields["scenario"]  # the draft's parameters were right
        known = {FIELD, *([SCENARIO] if scenario_fields else [])}
        ignored = [name for name in body if name not in known]
        unread = unknown_query(call.request, *_QUERY)
        return cls(
            call=call,
            body=body | _url_of(webhook_fields) | {"draft_of": draft.request_id},
            params=draft.request,
            ignored=[*dict.fromkeys(ignored + unread)],
            hints=finish_hints(ignored) + _query_hints(unread, {SCENARIO}),
            record_fields={**scenario_fields, **webhook_fields},
            idempotency_key=IDEMPOTENCY_KEY.read(call.request),
            is_dry_run=DRY_RUN.read(call.request),
            draft=draft,
        )

    @property
    def steps(self) -> int:
        """Those that each request runs, and is charged for."""
        done = self.draft.draft_steps if self.draft else 0
        return (self.plan.draft_steps or self.params.steps) - done

    @property
    def price(self) -> Price:
        """Of each request."""
        return self.call.services.settings.tariff.price(self.params, self.steps)

    async def accept(self, *, needs_worker: bool = False) -> Accepted:
        """Queue the requests, or find those that had the same idempotency key or draft.

        `needs_worker`: refuse when no live worker could run it soon, unless the settings let
        it wait for one.

        Raises:
            BadQueryError: it asks for a dry run.
            MochiError: any that `Submits.submit_all` raises.
        """
        self._refuse_dry_run()
        owner, key = self.call.key.key_id, self.idempotency_key
        accepted = await self.call.services.store.submit_all(
            self._requests(),
            owner,
            price=self.price,
            needs_worker=needs_worker and not self.call.services.settings.wait_for_worker,
            idempotency=None if key is None else Idempotency.of(owner, key, self.body),
            unless=await self.refusal(),
            draft_id=self.draft.request_id if self.draft else "",
        )
        structlog.contextvars.bind_contextvars(request_id=accepted.request_id)
        _log.info(
            "request.replayed" if accepted.is_replay else "request.accepted",
            key_id=owner,
            frames=self.params.frames,
            steps=self.steps,
            **({"cached": accepted.cached} if accepted.cached else {}),
        )
        return accepted

    async def refusal(self) -> MochiError | None:
        """Why it cannot be accepted now, unless it was before. A finish waits for its LoRAs."""
        if problem := self.call.services.store_check.refusal:
            return problem
        asks = self.params.lora and not self.draft
        return await lacking_loras(self.call, self.params) if asks else None

    def _requests(self) -> list[NewRequest]:
        same = {**self.record_fields, **_hint_fields(self.hints), **self._plan_fields()}
        history = self.call.services.history
        return [
            NewRequest(
                params,
                same | history.record_fields(params) | self._cache_fields(params),
                self._cache_key(params),
            )
            for params in self._params_of_each()
        ]

    def _params_of_each(self) -> list[RequestParams]:
        first = self.params.with_seed(_seeds)
        seeds = range(first.seed + 1, first.seed + self.plan.requests)
        return [first, *(first.model_copy(update={"seed": seed}) for seed in seeds)]

    def _cache_key(self, params: RequestParams) -> str:
        """Empty for what is to run in any case: a mock outcome, and a draft with its checkpoint."""
        is_to_run = "scenario" in self.record_fields or self.plan.draft_steps
        return "" if is_to_run or not self.call.services.settings.cache else cache_key_of(params)

    def _cache_fields(self, params: RequestParams) -> dict[str, str]:
        """Fields of the record by which a kept video with another fps is found."""
        key = frames_key_of(params) if self._cache_key(params) else ""
        return {"frames_key": key} if key else {}

    @property
    def cache_keys(self) -> list[str]:
        """Of each request; empty ones where the result cache has no part in them."""
        return [self._cache_key(params) for params in self._params_of_each()]

    def _plan_fields(self) -> dict[str, str]:
        """Fields of the record that make its run a draft, or one that finishes a draft."""
        if self.draft:
            first = str(self.draft.draft_steps)
            return {"draft_of": self.draft.request_id, "first_step": first}
        if self.plan.draft_steps:
            steps = self.plan.draft_steps
            return {"draft_steps": str(steps), "work": str(Work.of(self.params, steps))}
        return {}

    def headers(self, accepted: Accepted | None = None) -> dict[str, str]:
        """Of the response: ignored names, and what the key may still submit."""
        headers = ignored_parameters(self.ignored)
        if accepted is not None:
            headers |= rate_limit(accepted.rate) | (REPLAYED if accepted.is_replay else {})
        return headers

    def _refuse_dry_run(self) -> None:
        """Refuse what would otherwise make a video, and cost."""
        name = DRY_RUN.name
        if self.is_dry_run:
            raise BadQueryError(
                f"`{name}` works only with POST /v2/{self.params.model}, and with the finish of a "
                "draft."
            )
        if str(self.body.get(name)).lower() in {"true", "1"}:
            path = f"/v2/{self.params.model}"
            if self.draft:
                path = f"/v2/requests/{self.draft.request_id}/finish"
            raise BadQueryError(f"`{name}` must be in the query: POST {path}?{name}=true")


def _webhook_fields(call: Call, body: Mapping[str, Any], problems: Problems) -> dict[str, str]:
    """Fields of the job record for the webhook; none without one, or with one that is wrong."""
    given = [*WEBHOOK_URL.values(call.request), body.get(FIELD)]
    url = problems.read(lambda: webhook_url(given, call.services.webhook_guard), None)
    return {} if url is None else {"webhook_base": call.base_url, FIELD: url}


def _model_of(model: Model) -> dict[str, str]:
    """A field that the body is compared with; the default model has none."""
    return {} if model is MOCHI else {"model": model.slug}


def _url_of(webhook_fields: Mapping[str, str]) -> dict[str, str]:
    """The webhook's URL as the field of a body, wherever it came."""
    return {FIELD: webhook_fields[FIELD]} if webhook_fields else {}


def _query_hints(ignored: list[str], fields: Container[str]) -> list[str]:
    return query_hints(ignored, (parameter.name for parameter in _QUERY), fields)


def _hint_fields(hints: list[str]) -> dict[str, str]:
    return {"hints": json.dumps(hints)} if hints else {}


def _scenario_header(request: Request, body: Mapping[str, Any]) -> dict[str, str]:
    """The mock scenario in the header, as the field that it stands for."""
    values = MOCK_SCENARIO.values(request)
    if not values:
        return {}
    if any(value != body.get(SCENARIO, values[0]) for value in values) or len({*values}) > 1:
        raise BadHeaderError(f"`{SCENARIO}` has two different values: send one.")
    return {SCENARIO: values[0]}


async def _scenario_fields(
    call: Call, body: Mapping[str, Any], problems: Problems
) -> dict[str, str]:
    """Fields of the job record for the mock scenario; none without one that counts and is right."""
    if SCENARIO not in body or not await _are_mocks(call):
        return {}
    settings = call.services.settings
    parse = partial(
        Scenario.parse,
        body[SCENARIO],
        retention_seconds=settings.retention_seconds,
        of_tests=settings.engine == "fake",
    )
    if (scenario := problems.read(parse, None)) is None:
        return {}
    if scenario.name == PAYMENT_REQUIRED:
        raise MockPaymentError
    fields = {"scenario": str(body[SCENARIO])}
    if scenario.name == "expire":
        fields["retention_ms"] = f"{scenario.seconds * 1000:.0f}"
    return fields


async def _are_mocks(call: Call) -> bool:
    """Whether no worker has real weights. While none lives, the settings decide."""
    workers = await call.services.store.live_workers()
    if workers:
        return all(worker.engine.is_mock for worker in workers)
    return call.services.settings.is_mock
