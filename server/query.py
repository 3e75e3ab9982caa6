"""Parameters of the query that are true or false."""

from __future__ import annotations

from starlette.requests import Request

from server.errors import BadQueryError

VALUES = {"true": True, "1": True, "false": False, "0": False}


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
