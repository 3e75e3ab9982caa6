"""How a submit runs: whole or as a draft, and how many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from models.errors import InvalidParametersError
from models.request.params import DRAW_SEED, MAX_SEED, GenerateParams, whole_number
from server.api.submit.problems import Problems

DRAFT_STEPS, COUNT = "draft_steps", "count"
FIELDS = frozenset({DRAFT_STEPS, COUNT})
"""Of the body of a submit, besides the parameters of the video."""
MOST_REQUESTS = 8
DESCRIPTIONS = {
    DRAFT_STEPS: (
        "Make a draft: run only the first so many of `steps`, fewer than all. Its result has an "
        "estimate of the video, and a `finish_url`."
    ),
    COUNT: (
        "Submit so many requests, all or none: with the seeds `seed`, `seed` + 1 and so on. The "
        "response lists them as `requests`."
    ),
}


@dataclass(frozen=True)
class Plan:
    """What the fields of a submit ask for.

    Attributes:
        draft_steps: steps of a draft; None for a whole video.
        count: number of requests; None where the client did not name one: a single request,
            without a list in the response.
    """

    draft_steps: int | None = None
    count: int | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any], params: GenerateParams, problems: Problems) -> Self:
        """Validate the fields beside their parameters; note what is wrong."""
        return cls(
            problems.read(lambda: _draft_steps(body, params), None),
            problems.read(lambda: _count(body, params), None),
        )

    @classmethod
    def refuse(cls, body: Mapping[str, Any], params: GenerateParams, problems: Problems) -> Self:
        """Note each field on a route that has no place for its answer."""
        for name in sorted(FIELDS & body.keys()):
            path = f"/v2/{params.model}"
            text = f"`{name}` works only with POST {path}: send it there, or leave it out."
            problems.note(InvalidParametersError.of({name: text}))
        return cls()

    @property
    def requests(self) -> int:
        return self.count or 1


WHOLE = Plan()
"""One request for a whole video."""


def _draft_steps(body: Mapping[str, Any], params: GenerateParams) -> int | None:
    if DRAFT_STEPS not in body:
        return None
    most = params.steps - 1
    return whole_number(DRAFT_STEPS, body[DRAFT_STEPS], 1, most, "fewer than `steps`")


def _count(body: Mapping[str, Any], params: GenerateParams) -> int | None:
    if COUNT not in body:
        return None
    count = whole_number(COUNT, body[COUNT], 1, MOST_REQUESTS)
    if params.seed != DRAW_SEED and params.seed > MAX_SEED - (count - 1):
        text = (
            f"`seed` must be at most 2^63-{count} with a `count` of {count}, whose requests have "
            f"the seeds from `seed` on; got {params.seed}."
        )
        raise InvalidParametersError.of({"seed": text})
    return count
