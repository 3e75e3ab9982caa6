"""What happened in an experiment, in one list: what clients saw, workers logged and faults did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any


class What(StrEnum):
    """Kinds of events, by the process that reports them."""

    ACKNOWLEDGED = "acknowledged"
    """A client has seen the id of its request; `detail` is the submit's number, `body` what decides
    the video."""
    ANSWERED = "answered"
    """A client was told the end: `detail` is `completed` or the error code, `body` the answer."""
    DAMAGED = "damaged"
    """A client could not have the video of a completed request; `detail` says why."""

    STARTED = "run.started"
    """`detail` is the attempt."""
    COMPLETED = "run.completed"
    FAILED = "run.failed"
    REQUEUED = "run.requeued"
    LEFT_BEHIND = "run.left_behind"
    LOST = "run.lost"
    LATE = "run.late"
    RECOVERED = "request.recovered"
    """These are the names of log events of a worker."""

    KILLED = "killed"
    """SIGKILL to a worker."""
    EXITED = "exited"
    """A worker has ended otherwise."""
    PAUSED = "paused"
    RESUMED = "resumed"
    """SIGSTOP and SIGCONT to a worker."""
    BROKER_DOWN = "broker down"
    BROKER_UP = "broker up"


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        at: seconds since 1970, by the one clock of the machine.
        what: see `What`, for `detail` and `body` too.
        request_id: of the request that it is about, if there is one.
        worker: the process that it is about, or that logged it.
    """

    at: float
    what: What
    request_id: str = ""
    worker: str = ""
    detail: str = ""
    body: str = ""


_LOGGED = {
    what.value: what
    for what in (
        What.STARTED,
        What.COMPLETED,
        What.FAILED,
        What.REQUEUED,
        What.LEFT_BEHIND,
        What.LOST,
        What.LATE,
        What.RECOVERED,
    )
}


_DETAILS = {What.STARTED: "attempt", What.FAILED: "error_code", What.RECOVERED: "outcome"}


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a process's log, without those that are no JSON: a kill may cut the last."""
    for line in path.read_text(errors="replace").splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if isinstance(fields, dict) and "event" in fields:
            yield fields


def events_of(path: Path) -> Iterator[Event]:
    """What the log of a worker tells of requests."""
    for fields in read_log(path):
        what = _LOGGED.get(fields["event"])
        if what is not None:
            yield Event(
                datetime.fromisoformat(fields["timestamp"]).timestamp(),
                what,
                request_id=fields["request_id"],
                worker=path.stem,
                detail=str(fields.get(_DETAILS.get(what, ""), "")),
            )
