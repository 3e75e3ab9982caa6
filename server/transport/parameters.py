"""Headers of requests and answers that are ours: idempotency keys, what was ignored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from urllib.parse import quote

from starlette.requests import Request

from server.errors import BadHeaderError, BadQueryError
from worker.errors import Rate

VALUES = {"true": True, "1": True, "false": False, "0": False}


MOST_KEY_LENGTH = 255
MOST_IGNORED_NAMES = 20
MOST_NAME_LENGTH = 40
REPLAYED = {"Idempotency-Replayed": "true"}


def idempotency_key(request: Request) -> str | None:
    """The client's own name for what it asks for; None when it gives none.

    Raises:
        BadHeaderError: it is empty, too long, or there are two.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not 0 < len(given[0]) <= MOST_KEY_LENGTH:
        came = f"{len(given)} of them" if len(given) > 1 else f"{len(given[0])}"
        raise BadHeaderError(
            f"`Idempotency-Key` must be one value of 1 to {MOST_KEY_LENGTH} characters; got {came}."
        )
    return given[0]


def rate_limit(rate: Rate | None) -> dict[str, str]:
    """How many more requests the key may submit, in the headers that most APIs have for that."""
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit": str(rate.limit),
        "x-ratelimit-remaining": str(rate.remaining),
        "x-ratelimit-reset": str(math.ceil(rate.reset_seconds)),
    }


def ignored_parameters(names: Iterable[str]) -> dict[str, str]:
    """Names that mean nothing to us, quoted: they come from the client and go into a header."""
    quoted = [quote(name[:MOST_NAME_LENGTH], errors="replace") for name in names]
    if not quoted:
        return {}
    return {"x-ignored-parameters": ", ".join(quoted[:MOST_IGNORED_NAMES])}


def flag(request: Request, name: str) -> bool:
    """Whether the query asks for it.

    Raises:
        BadQueryError: in other words than ours, or twice.
    """
    given = request.query_params.getlist(name)
    if not given:
        return False
    if len(given) > 1 or given[0] not in VALUES:
        raise BadQueryError(f"`{name}` must be one of `true`, `1`, `false` and `0`.")
    return VALUES[given[0]]
