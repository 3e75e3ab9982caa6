"""Outcomes that a client may wish for from mock weights, to test itself against them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.errors import InvalidParametersError

SCENARIO = "x-mock-scenario"
"""The header, and the field in a body, that has one."""
MOST_SLOW_SECONDS = 3600
LEAST_EXPIRE_SECONDS = 1
FORM = (
    r"^(fail|blocked|out_of_memory|crash|(slow|expire):[0-9]{1,6}(\.[0-9]{1,3})?)$"  # ASCII digits
)
_FORM = re.compile(FORM)


@dataclass(frozen=True)
class Scenario:
    """One of them.

    | text             | what happens, halfway through the steps                         |
    |------------------|-----------------------------------------------------------------|
    | `fail`           | it ends FAILED, `internal`                                      |
    | `blocked`        | it ends FAILED, `content_blocked`, with a category              |
    | `out_of_memory`  | it ends FAILED, `out_of_memory`                                 |
    | `crash`          | the worker's process dies, at each attempt: `worker_lost`       |
    | `slow:SECONDS`   | its run takes so much longer, spread over the steps             |
    | `expire:SECONDS` | nothing; but record and video are gone so long after the end    |

    Attributes:
        name: the text up to the colon.
        seconds: what follows it, or 0.
    """

    name: str
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: object, *, retention_seconds: float = float("inf")) -> Scenario:
        """Read a client's wish.

        Args:
            text: as it came.
            retention_seconds: no record is kept for longer.

        Raises:
            InvalidParametersError: it is none of them; with the list.
        """
        if isinstance(text, str) and _FORM.fullmatch(text):
            name, _, seconds = text.partition(":")
            scenario = cls(name, float(seconds or 0))
            if scenario._is_within(retention_seconds):
                return scenario
        raise InvalidParametersError(
            f"`{SCENARIO}` must be one of `fail`, `blocked`, `out_of_memory`, `crash`, "
            f"`slow:SECONDS` (0 to {MOST_SLOW_SECONDS}) and `expire:SECONDS` "
            f"({LEAST_EXPIRE_SECONDS} to {retention_seconds:g})."
        )

    def _is_within(self, retention_seconds: float) -> bool:
        match self.name:
            case "slow":
                return self.seconds <= MOST_SLOW_SECONDS
            case "expire":
                return LEAST_EXPIRE_SECONDS <= self.seconds <= retention_seconds
        return True
