"""Outcomes that a client may request from mock weights, to test itself against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from signal import Signals

from models.errors import InvalidParametersError

SCENARIO = "x-mock-scenario"
"""The header, and the field in a body, that has one."""
MOST_SLOW_SECONDS = 3600
LEAST_EXPIRE_SECONDS = 1
FORM = (
    r"^(fail|blocked|out_of_memory|crash|late_validation|payment_required|"
    r"(slow|expire):[0-9]{1,6}(\.[0-9]{1,3})?)$"  # ASCII digits
)
LATE_VALIDATION = "late_validation"
PAYMENT_REQUIRED = "payment_required"
_FORM = re.compile(FORM)
_FORM_OF_TESTS = re.compile(r"^(bug|hang|freeze|signal:[A-Z]+|(fail|warn|late_validation):.+)$")


@dataclass(frozen=True)
class Scenario:
    """A scenario: a name, which for some is followed by a colon and an argument.

    | text             | what happens, halfway through the steps                         |
    |------------------|-----------------------------------------------------------------|
    | `fail`           | it ends FAILED, `internal`                                      |
    | `blocked`        | it ends FAILED, `content_blocked`, with a category              |
    | `out_of_memory`  | it ends FAILED, `out_of_memory`                                 |
    | `crash`          | the worker's process dies, at each attempt: `worker_lost`       |
    | `slow:SECONDS`   | its run takes so much longer, spread over the steps             |
    | `expire:SECONDS` | nothing; but record and video are gone so long after the end    |

    Two imitate the hosted API, and begin in the gateway:

    | `late_validation`  | wrong parameters are accepted; it ends FAILED, `internal`, at once |
    | `payment_required` | the submit is refused with 402                                     |

    The tests of this project have further ones. A gateway accepts them with the fake engine only:

    | text             | what happens, halfway through the steps                         |
    |------------------|-----------------------------------------------------------------|
    | `fail:MESSAGE`   | it ends FAILED, `internal`, with this error                     |
    | `warn:MESSAGE`   | nothing; but the video has this warning                         |
    | `bug`            | an exception whose text no client may see                       |
    | `signal:NAME`    | the worker's process gets a signal, such as SIGSEGV             |
    | `hang`           | the step never returns                                          |
    | `freeze`         | the same in C code that lets no other thread run Python         |

    Attributes:
        name: the text up to the colon.
        seconds: the argument of `slow` and `expire`, or 0.
        text: the argument of the others, or empty.
    """

    name: str
    seconds: float = 0.0
    text: str = ""

    def first_step(self, total: int) -> int:
        """The step at which it happens, of so many."""
        return 0 if self.name == LATE_VALIDATION else max(1, total // 2)

    @classmethod
    def parse(
        cls, text: object, *, retention_seconds: float = float("inf"), of_tests: bool = False
    ) -> Scenario:
        """Parse and validate the value of the header or field.

        Args:
            text: the value, of any type.
            retention_seconds: the longest that `expire` may keep a record.
            of_tests: also accept the scenarios of this project's tests.

        Raises:
            InvalidParametersError: the value is no scenario; the text lists them.
        """
        scenario = _read(text, of_tests=of_tests) if isinstance(text, str) else None
        if scenario and _is_valid(scenario, retention_seconds):
            return scenario
        text = (
            f"`{SCENARIO}` must be one of `fail`, `blocked`, `out_of_memory`, `crash`, "
            f"`{LATE_VALIDATION}`, `{PAYMENT_REQUIRED}`, "
            f"`slow:SECONDS` (0 to {MOST_SLOW_SECONDS}) and `expire:SECONDS` "
            f"({LEAST_EXPIRE_SECONDS} to {retention_seconds:g})."
        )
        raise InvalidParametersError.of({SCENARIO: text})


def _read(text: str, *, of_tests: bool) -> Scenario | None:
    name, _, argument = text.partition(":")
    if _FORM.fullmatch(text):
        return Scenario(name, seconds=float(argument or 0))
    if of_tests and _FORM_OF_TESTS.fullmatch(text):
        return Scenario(name, text=argument)
    return None


def _is_valid(scenario: Scenario, retention_seconds: float) -> bool:
    match scenario.name:
        case "slow":
            return scenario.seconds <= MOST_SLOW_SECONDS
        case "expire":
            return LEAST_EXPIRE_SECONDS <= scenario.seconds <= retention_seconds
        case "signal":
            return scenario.text in Signals.__members__
    return True
