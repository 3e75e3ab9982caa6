"""Jepsen's accounting of a history: what was promised for each acknowledged request, and kept.

Pure, and independent of the job records: that a request ran twice is told by the logs of the
workers that ran it, and that it had to, by what was done to those workers.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from tests.chaos.history import Event, What
from worker.store.keyspace import HEARTBEAT_SECONDS, MOST_ATTEMPTS

COMPLETED = "completed"
WORKER_LOST = "worker_lost"
SLACK_SECONDS = 2 * HEARTBEAT_SECONDS
"""A worker has last beaten up to one beat before it falls silent, and beats one after."""


class Why(StrEnum):
    """Good reasons for another run of a request; each is about the worker of the run before."""

    KILLED = "its worker was killed"
    EXITED = "its worker ended"
    REQUEUED = "it was requeued"
    LEFT_BEHIND = "its worker had to give it up"
    PAUSED = "its worker was paused for a lease"
    OUTAGE = "the broker was away for a lease"


@dataclass(frozen=True)
class Account:
    """What came of the requests.

    Attributes:
        acknowledged: requests whose id a client has seen.
        completed: those of them that a client saw COMPLETED.
        failed: those that a client saw FAILED, by error code.
        lost: ids of those that a client saw no end of.
        runs: how many requests had so many runs.
        reruns: runs beyond a request's first, by what explains them.
        duplicated: runs beyond the first that nothing explains, a sentence each.
        answers: how many requests were seen with so many different ends.
        violations: other broken promises, a sentence each.
        detection: seconds from the kill of a worker to the repair of the request that it held: it
            waits again, or has ended for that reason.
    """

    acknowledged: int
    completed: int
    failed: dict[str, int]
    lost: list[str]
    runs: dict[int, int]
    reruns: dict[Why, int]
    duplicated: list[str]
    answers: dict[int, int]
    violations: list[str]
    detection: list[float]

    @property
    def terminal(self) -> int:
        """Acknowledged requests that a client saw the end of."""
        return self.completed + sum(self.failed.values())

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.violations)


@dataclass
class _Run:
    worker: str
    started: float
    attempt: str
    end: Event | None = None


@dataclass(frozen=True)
class _Silence:
    """While a worker could not beat."""

    start: float
    end: float
    why: Why


@dataclass(frozen=True)
class _Fate:
    """What was done to a worker: its end, and while it could not beat."""

    gone: Event | None
    silences: list[_Silence]


_ENDS = {What.COMPLETED, What.FAILED, What.REQUEUED, What.LEFT_BEHIND, What.LOST, What.LATE}
_GIVEN_UP = {What.REQUEUED: Why.REQUEUED, What.LEFT_BEHIND: Why.LEFT_BEHIND}
_GONE = {What.KILLED: Why.KILLED, What.EXITED: Why.EXITED}


def account(events: Iterable[Event], *, lease_seconds: float) -> Account:
    """Add up a history, in any order; a lease is what the workers were started with."""
    history = sorted(events, key=lambda event: event.at)
    ids = {event.request_id: None for event in history if event.what is What.ACKNOWLEDGED}
    ends = _ends_seen(history)
    runs = _runs(history)
    outcomes = Counter(ends[request_id][-1].detail for request_id in ids if request_id in ends)
    reruns, duplicated = _explain(runs, history, lease_seconds)
    return Account(
        acknowledged=len(ids),
        completed=outcomes.pop(COMPLETED, 0),
        failed=dict(outcomes),
        lost=[request_id for request_id in ids if request_id not in ends],
        runs=_histogram(len(runs.get(request_id, ())) for request_id in ids),
        reruns=reruns,
        duplicated=duplicated,
        answers=_histogram(len(ends.get(request_id, ())) for request_id in ids),
        violations=[*_violations(history, ends, runs)],
        detection=[*_detection(history, runs)],
    )


def _ends_seen(history: list[Event]) -> dict[str, list[Event]]:
    """The different ends that clients saw of each request."""
    ends: defaultdict[str, dict[str, Event]] = defaultdict(dict)
    for event in history:
        if event.what is What.ANSWERED:
            ends[event.request_id].setdefault(event.detail + event.body, event)
    return {request_id: list(different.values()) for request_id, different in ends.items()}


def _runs(history: list[Event]) -> dict[str, list[_Run]]:
    """The runs of each request, as the workers logged them."""
    runs: defaultdict[str, list[_Run]] = defaultdict(list)
    for event in history:
        if event.what is What.STARTED:
            runs[event.request_id].append(_Run(event.worker, event.at, event.detail))
        elif event.what in _ENDS:
            for run in runs[event.request_id]:
                if run.worker == event.worker and run.end is None:
                    run.end = event
    for its in runs.values():
        its.sort(key=lambda run: run.attempt)  # a requeued one has that of the next one
    return runs


def _explain(
    runs: dict[str, list[_Run]], history: list[Event], lease_seconds: float
) -> tuple[dict[Why, int], list[str]]:
    fates = _fates(history, {run.worker for its in runs.values() for run in its})
    reasons: Counter[Why] = Counter()
    duplicated = []
    for request_id, its in runs.items():
        for before, after in pairwise(its):
            why = _why_again(before, after.started, fates[before.worker], lease_seconds)
            if why is not None:
                reasons[why] += 1
            else:
                duplicated.append(
                    f"{request_id}: a run on {after.worker} at {after.started:.3f}, after one on "
                    f"{before.worker} at {before.started:.3f} {_ended(before, after.started)}"
                )
    return dict(reasons), duplicated


def _fates(history: list[Event], workers: Iterable[str]) -> dict[str, _Fate]:
    about: defaultdict[str, list[Event]] = defaultdict(list)
    for event in history:
        about[event.worker].append(event)
    outages = _silences(history, What.BROKER_DOWN, What.BROKER_UP, Why.OUTAGE)
    return {
        worker: _Fate(
            gone=next((event for event in about[worker] if event.what in _GONE), None),
            silences=[
                *_joined(
                    [*_silences(about[worker], What.PAUSED, What.RESUMED, Why.PAUSED), *outages]
                )
            ],
        )
        for worker in workers
    }


def _why_again(run: _Run, at: float, fate: _Fate, lease_seconds: float) -> Why | None:
    """What explains another run at `at`."""
    end = run.end if run.end is not None and run.end.at <= at else None
    if end is not None and end.what in _GIVEN_UP:
        return _GIVEN_UP[end.what]
    if end is not None and end.what in {What.COMPLETED, What.FAILED}:
        return None
    until = end.at if end is not None else at  # a worker that reported a loss was alive until then
    if fate.gone is not None and fate.gone.at <= until:
        return _GONE[fate.gone.what]
    # A worker that was paused during its start reports it when the next run is under way.
    started = run.started if run.started < at else float("-inf")
    for silence in fate.silences:
        seconds = min(silence.end, until) - max(silence.start, started)
        if seconds + SLACK_SECONDS >= lease_seconds:
            return silence.why
    return None


def _silences(history: list[Event], start: What, end: What, why: Why) -> list[_Silence]:
    """From each `start` to the next `end`, or for ever."""
    starts = [event.at for event in history if event.what is start]
    ends = [event.at for event in history if event.what is end]
    return [
        _Silence(at, min((e for e in ends if e >= at), default=float("inf")), why) for at in starts
    ]


def _joined(silences: list[_Silence]) -> Iterator[_Silence]:
    """Those that follow too closely for a beat between them count as one."""
    last: _Silence | None = None
    for silence in sorted(silences, key=lambda each: each.start):
        if last is None:
            last = silence
        elif silence.start <= last.end + HEARTBEAT_SECONDS:
            why = Why.PAUSED if Why.PAUSED in {last.why, silence.why} else Why.OUTAGE
            last = _Silence(last.start, max(last.end, silence.end), why)
        else:
            yield last
            last = silence
    if last is not None:
        yield last


def _ended(run: _Run, at: float) -> str:
    if run.end is None or run.end.at > at:
        return "that was going on"
    return f"that had ended with {run.end.what}"


def _violations(
    history: list[Event], ends: dict[str, list[Event]], runs: dict[str, list[_Run]]
) -> Iterator[str]:
    for request_id, different in ends.items():
        if len(different) > 1:
            told = " and ".join(f"{end.detail} {end.body}" for end in different)
            yield f"{request_id}: clients saw {len(different)} ends: {told}"
    submits: defaultdict[str, set[str]] = defaultdict(set)
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for event in history:
        if event.what is What.DAMAGED:
            yield f"{event.request_id}: {event.detail}"
        if event.what is What.ACKNOWLEDGED:
            submits[event.request_id].add(event.detail)
            ids[event.detail].add(event.request_id)
    yield from (
        f"{request_id}: the answer to {len(numbers)} submits"
        for request_id, numbers in submits.items()
        if len(numbers) > 1
    )
    yield from (
        f"{' and '.join(sorted(its))}: made by one submit that was repeated with its key"
        for its in ids.values()
        if len(its) > 1
    )
    for request_id, its in runs.items():
        counted = Counter(run.end.what for run in its if run.end is not None)
        if counted[What.COMPLETED] and any(map(_is_without_run, ends.get(request_id, ()))):
            yield f"{request_id}: cached, and completed by a run"
        if counted[What.COMPLETED] > 1:
            yield f"{request_id}: completed by {counted[What.COMPLETED]} runs"
        attempts = len(its) - counted[What.REQUEUED]
        if attempts > MOST_ATTEMPTS:
            yield f"{request_id}: {attempts} attempts"


def _is_without_run(end: Event) -> bool:
    """Whether the result says that another request's run made its video."""
    metrics = json.loads(end.body)["metrics"] if end.body else {}
    return bool(metrics.get("cached")) and not metrics["inference_time"]


def _detection(history: list[Event], runs: dict[str, list[_Run]]) -> Iterator[float]:
    """For each kill of a worker in the middle of a run that was not its request's last word."""
    killed = {event.worker: event.at for event in history if event.what is What.KILLED}
    repairs: defaultdict[str, list[float]] = defaultdict(list)
    for event in history:
        is_end = event.what is What.ANSWERED and event.detail == WORKER_LOST
        if event.what is What.RECOVERED or is_end:
            repairs[event.request_id].append(event.at)
    for request_id, its in runs.items():
        for run, after in zip(its, [*its[1:], None], strict=True):
            at = killed.get(run.worker)
            if at is None or run.end is not None:
                continue
            # A reconciler that is killed after its repair logs none: the next run tells of it.
            signs = [*repairs[request_id], *([after.started] if after else [])]
            later = [moment for moment in signs if moment > at]
            if later:
                yield min(later) - at


def _histogram(counts: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(counts).items()))
