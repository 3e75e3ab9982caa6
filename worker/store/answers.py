"""Reads the answers of Lua scripts. An answer that this version does not know raises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, TypeVar

from worker.errors import UnknownAnswerError

Outcome = TypeVar("Outcome", bound=StrEnum)


class Cancellation(StrEnum):
    """The answer of cancel.lua."""

    REQUESTED = "requested"
    """A waiting request has ended FAILED; a running one ends at its next step."""
    ENDED = "ended"
    """It had ended before."""


def pairs(flat: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """A flat list of alternating names and values, pair by pair.

    Raises:
        ValueError: the last name has no value.
    """
    each = iter(flat)
    return zip(each, each, strict=True)


def outcome(kind: type[Outcome], script: str, answer: str) -> Outcome:
    """The member of `kind` that `script` has answered with.

    Raises:
        UnknownAnswerError: `kind` has no such member.
    """
    try:
        return kind(answer)
    except ValueError:
        raise UnknownAnswerError(script, answer) from None


def was_done(script: str, answer: object) -> bool:
    """Whether the script's guard let it write: 1, or 0 when it did not.

    Raises:
        UnknownAnswerError: another answer.
    """
    if answer not in (0, 1):
        raise UnknownAnswerError(script, answer)
    return answer == 1
