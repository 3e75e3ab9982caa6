"""Loads the Lua scripts, and reads their answers. The broker runs each as one atomic step.

An answer that this version does not know raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from models.request.params import MODEL
from worker.broker.schema import ERROR_CODE, READS, SCHEMA, SCHEMA_KEY
from worker.errors import UnknownAnswerError
from worker.store import keyspace

Outcome = TypeVar("Outcome", bound=StrEnum)

_FOLDER = Path(__file__).with_name("lua")
_COMMON = ("base", "accounts", "queue", "deliveries", "lists", "cache", "ends")
"""Files of `lua/common` in their order: each may use what those before it define."""

# Read with the code of the process: an upgrade may replace the files while it runs.
_TEXTS = {path.stem: path.read_text("utf-8") for path in _FOLDER.glob("*/*.lua")}


@cache
def source(name: str) -> str:
    """Script `name`, after the code that all scripts share.

    A broker with full memory refuses submits, but still takes heartbeats, results and the acts of
    administrators (`allow-oom`).
    """
    first_line = "" if name == "submit" else "#!lua flags=allow-oom\n"
    return first_line + _constants() + "".join(_TEXTS[part] for part in (*_COMMON, name))


def _constants() -> str:
    reads = ", ".join(f"['{number}'] = true" for number in sorted(READS))
    return (
        f"local BOUNDS_MS = {{ {', '.join(map(str, keyspace.BOUNDS_MS))} }}\n"
        f"local DEFAULT_MODEL, QUEUES = '{MODEL}', {{ {', '.join(map(repr, keyspace.QUEUES))} }}\n"
        f"local RECORD, RQ_JOB = '{keyspace.record('')}', '{keyspace.rq_job('')}'\n"
        f"local QUEUE_KEYS = {{ {', '.join(_queue_keys())} }}\n"
        f"local SCHEMA_KEY, SCHEMA = '{SCHEMA_KEY}', {SCHEMA}\n"
        f"local READS = {{ {reads} }}\n"
        f"local SCHEMA_ERROR = '{ERROR_CODE} '\n"
    )


def _queue_keys() -> Iterator[str]:
    """By name: the place in KEYS of the default model's, and the form of the others'."""
    places = keyspace.for_scripts()
    default, other = asdict(keyspace.QueueKeys.of()), asdict(keyspace.QueueKeys.of("%s"))
    for name, key in default.items():
        yield f"{name} = {{ {places.index(key) + 1}, '{other[name]}' }}"


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
