"""What two servers answered, side by side, with the differences that are known and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from server.cli.hosted.recording import RUNNING, Answer

CALLS = (
    "credits",
    "submit",
    "status",
    "early result",
    "last status",
    "result",
    "v1 result",
    "video",
    "blocking",
)
"""In the order of the table."""
EARLY = ("status", "early result")
"""Calls before the end: which state they meet is a matter of time."""
ABSENT = "–"  # noqa: RUF001 (as in the documents)
COMPARED_BY_VALUE = ("status", "seed", "prompt", "content_type")
"""Fields that the same payload gives the same values, or that clients compare with constants."""
MOST_SHOWN = 60
MEASURED = ("seconds", "bytes")
"""Shown, and never a difference."""


class Verdict(StrEnum):
    """Of one row."""

    SAME = ""
    KNOWN = "known"
    DIFFERS = "DIFFERS"


class Known(NamedTuple):
    """A difference that is meant. The patterns are of the row, and of what each server has."""

    where: str
    reason: str
    hosted: str = ".*"
    local: str = ".*"


_ADDED_FIELDS = (
    "progress|queue_position|stage|step|total_steps|eta_seconds|attempt|cancel_url|events_url"
    "|expires_at|preview|warnings|precision|error_code|energy_joules|poster|last_frame|draft"
    "|requests|cached"
)
_ADDED_HEADERS = (
    "x-ratelimit-[a-z]+|x-ignored-parameters|idempotency-replayed|retry-after|x-content-type-options"
    "|x-frame-options|referrer-policy|content-security-policy|x-rate-limit-reset-at-utc|x-cached"
)
_TRANSPORT_HEADERS = re.compile(
    "accept-ranges|access-control-.*|age|alt-svc|cache-control|cf-.*|connection|content-encoding"
    "|content-disposition|content-length|date|etag|keep-alive|last-modified|nel|report-to|server"
    "|server-timing|set-cookie|strict-transport-security|transfer-encoding|vary|via|x-amz-.*"
    "|x-cache.*|x-envoy-.*|x-goog-.*|x-kong-.*|x-powered-by|x-served-by|x-timer"
)
"""Of the connection, or of a CDN or store in between. They are left out."""
KNOWN = (
    Known(
        rf".* (metrics\.)?({_ADDED_FIELDS})(\[\])?",
        "Additions of this server, which clients of the hosted API ignore:",
        hosted=ABSENT,
    ),
    Known(
        rf".* header ({_ADDED_HEADERS})",
        "Additions of this server, for limits, safe retries and browsers:",
        hosted=ABSENT,
    ),
    Known(
        ".* header content-type",
        "JSON is UTF-8 with and without the charset.",
        hosted="application/json.*",
        local="application/json.*",
    ),
)
VALIDATED_LATE = (200, 400)
"""Status codes of a submit with a wrong parameter, hosted and here."""
_WHY_LATE = (
    "Parameters are checked before anything is queued; the hosted v2 accepts the request, and then "
    "fails it."
)


class Row(NamedTuple):
    """One line of the table."""

    call: str
    what: str
    hosted: str
    local: str
    verdict: Verdict
    reason: str

    @property
    def is_addition(self) -> bool:
        return self.verdict is Verdict.KNOWN and self.hosted == ABSENT

    @property
    def is_equal(self) -> bool:
        return self.hosted == self.local or self.what in MEASURED


def rows(hosted: Mapping[str, Answer], local: Mapping[str, Answer]) -> Iterator[Row]:
    """Compare two recordings. A call that only one server let happen is shown, not judged."""
    for call in CALLS:
        if call in hosted and call in local:
            yield from _compare(call, hosted[call], local[call])
        elif call in hosted or call in local:
            there, here = ("made" if call in one else ABSENT for one in (hosted, local))
            yield Row(call, "call", there, here, Verdict.SAME, "")


def _compare(call: str, hosted: Answer, local: Answer) -> Iterator[Row]:
    if call == "submit" and (hosted.status, local.status) == VALIDATED_LATE:
        statuses = str(hosted.status), str(local.status)
        yield Row(call, "status code", *statuses, Verdict.KNOWN, _WHY_LATE)
        return
    both = describe(call, hosted), describe(call, local)
    for what in both[0] | both[1]:
        yield _row(call, what, *(one.get(what, ABSENT) for one in both))


def _row(call: str, what: str, hosted: str, local: str) -> Row:
    if hosted == local or what in MEASURED:
        return Row(call, what, hosted, local, Verdict.SAME, "")
    for known in KNOWN:
        if (
            re.fullmatch(known.where, f"{call} {what}")
            and re.fullmatch(known.hosted, hosted)
            and re.fullmatch(known.local, local)
        ):
            return Row(call, what, hosted, local, Verdict.KNOWN, known.reason)
    return Row(call, what, hosted, local, Verdict.DIFFERS, "")


def describe(call: str, answer: Answer) -> dict[str, str]:
    """An answer as what a client can rely on: names, types and constants."""
    described = {"status code": str(answer.status), "seconds": f"{answer.seconds:.2f}"}
    for name in sorted(answer.headers):
        value = answer.headers[name]
        if not _TRANSPORT_HEADERS.fullmatch(name):
            described[f"header {name}"] = value if name == "content-type" else _text(value)
    if answer.body is not None:
        described |= _fields(answer.body)
        if call in EARLY and answer.field("status") in RUNNING:
            described["status"] = "string " + " or ".join(sorted(RUNNING))
    else:
        described |= {"bytes": f"{answer.size:,}", **answer.video}
    return described


def _fields(value: object, path: str = "") -> dict[str, str]:
    """The paths of a JSON value, each with the shape of what is there."""
    if isinstance(value, dict) and value:
        inner = [_fields(each, f"{path}.{name}".lstrip(".")) for name, each in value.items()]
        return {name: shape for part in inner for name, shape in part.items()}
    if isinstance(value, list) and value:
        return _fields(value[0], f"{path}[]")
    return {path or "body": _shape(path.rpartition(".")[2], value)}


def _shape(name: str, value: object) -> str:
    kind = _kind(value)
    if name in COMPARED_BY_VALUE and not isinstance(value, dict | list):
        return f"{kind} {_cut(json.dumps(value, ensure_ascii=False))}"
    return f"{kind} {_form(value)}".rstrip() if isinstance(value, str) else kind


_KINDS = {
    "bool": "boolean",
    "int": "number",
    "float": "number",
    "str": "string",
    "list": "empty array",
    "dict": "empty object",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value).__name__, "null")


def _form(text: str) -> str:
    """The form of a string. Ids, hosts and times, which each request has anew, are left out."""
    parts = urlsplit(text) if text.startswith(("http://", "https://")) else None
    if parts is not None and parts.path.endswith(".mp4"):
        return "(URL of an .mp4)"
    if parts is not None:
        return (
            f"(URL, {'/'.join('{id}' if _is_id(part) else part for part in parts.path.split('/'))})"
        )
    if _is_id(text):
        return "(UUID)"
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return ""
    return "(time)"


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _text(value: str) -> str:
    """The shape of a header."""
    try:
        float(value)
    except ValueError:
        return f"text {_form(value)}".rstrip()
    return "number"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
