"""What an experiment found, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from rich.table import Table

from tests.chaos.accounting import Account
from tests.chaos.books import Books
from tests.chaos.faults import Kind

NOTICE_SECONDS = 10.0
"""Promised: a dead worker is noticed so long after its lease at the latest."""


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        seconds: how long faults come and requests are submitted.
        seed: of the faults.
        jobs: requests, evenly spread.
        workers: at any time.
        lease_seconds: as the setting.
        groups: of the workers, how many share each video with a follower, on mock weights.
    """

    seconds: float
    seed: int
    jobs: int
    workers: int
    lease_seconds: float
    groups: int = 0
    upgrade_from: str = ""
    """A git ref: instead of faults, an upgrade from that release to this one, and the rollback."""

    @property
    def title(self) -> str:
        if self.upgrade_from:
            return f"upgrade from {self.upgrade_from} and rollback"
        return f"{self.seconds:g} s, seed {self.seed}"


@dataclass
class Report:
    """What came of it.

    Attributes:
        quiet_seconds: from the end of the faults until every request had ended; None: not in time.
        errors: that clients met; see `Clients`.
        replayed: submits that were accepted before, and answered with the same id again.
        gave_up: submits that no answer came to in a minute.
        unseen: requests that were made and no client was told of.
        files_left: files that belong to no completed record; they are swept when it is forgotten.
        files_missing: of completed records.
        died: processes that ended by themselves.
        stuck: processes that did not stop when told to.
        logged_errors: log lines of level error, by event.
        books: where the credits are, by API key.
        wrong_costs: videos that cost another amount than their price, a sentence each.
        unended: requests whose record says that they wait or run, when all is quiet.
        kinds: how many requests were drafts, finishes, or had LoRAs.
        deliveries: how many requests had so many webhook deliveries; empty without webhooks.
        processes_left: ids of processes that lived on.
        cache: how often the result cache did what.
        forgotten: its keys that never expire.
    """

    plan: Plan
    account: Account
    faults: dict[Kind, int]
    quiet_seconds: float | None
    errors: dict[str, int]
    replayed: int
    gave_up: int
    unseen: int
    files_left: list[str]
    files_missing: list[str]
    died: list[str]
    stuck: list[str]
    logged_errors: dict[str, int]
    books: dict[str, Books]
    deliveries: dict[int, int] = field(default_factory=dict)
    processes_left: list[int] = field(default_factory=list)
    cache: dict[str, int] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    wrong_costs: list[str] = field(default_factory=list)
    unended: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not [*broken_promises(self)]

    @property
    def made_twice(self) -> int:
        """Requests too many, whatever became of the submits that were given up."""
        return max(0, self.unseen - self.gave_up)

    def as_json(self) -> dict[str, Any]:
        """All of it, with the figures of the table."""
        kept = self.account
        figures = {"terminal": kept.terminal, "is_clean": self.is_clean}
        return figures | asdict(self)


def table(report: Report) -> Table:
    """For people: one line for each question."""
    plan = report.plan
    shown = Table(
        title=f"{plan.title}, {plan.workers} workers, lease {plan.lease_seconds:g} s",
        show_header=False,
    )
    for what, answer in _lines(report):
        shown.add_row(what, answer)
    return shown


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    kept = report.account
    yield "acknowledged", str(kept.acknowledged)
    yield "terminal", f"{kept.terminal}: {_listed({'completed': kept.completed} | kept.failed)}"
    yield "lost", str(len(kept.lost))
    yield "duplicated", str(len(kept.duplicated))
    yield (
        "other violations",
        str(len([*broken_promises(report)]) - len(kept.lost + kept.duplicated)),
    )
    if report.kinds:
        yield "of them", _listed(report.kinds)
    yield "different ends seen: requests", _listed(kept.answers)
    yield "runs: requests", _listed(kept.runs)
    yield "runs beyond the first", _listed({why.value: kept.reruns[why] for why in kept.reruns})
    yield "detection of a death", _detection(kept.detection)
    quiet = report.quiet_seconds
    yield "quiet after the last fault", "not in time" if quiet is None else f"{quiet:.1f} s"
    yield "faults", _listed({kind.value: report.faults[kind] for kind in report.faults})
    yield "errors that clients met", _listed(report.errors)
    yield "submits replayed, given up", f"{report.replayed}, {report.gave_up}"
    yield "requests that no client knows", str(report.unseen)
    yield "files of no completed request", str(len(report.files_left))
    yield (
        "processes that died, hung, are left",
        ", ".join(str(len(group)) for group in (report.died, report.stuck, report.processes_left)),
    )
    if report.deliveries:
        yield "webhook deliveries: requests", _listed(report.deliveries)
    if report.cache:
        yield "result cache", _listed(report.cache)
    yield "errors in the logs", _listed(report.logged_errors)
    yield f"credits charged, left, reserved, of {len(report.books)} keys", _credits(report.books)


def broken_promises(report: Report) -> Iterator[str]:
    """A sentence for each."""
    for request_id in report.account.lost:
        yield f"lost: {request_id} was acknowledged and has no end"
    for sentence in report.account.duplicated:
        yield f"duplicated: {sentence}"
    for sentence in report.account.violations:
        yield f"violation: {sentence}"
    for name in report.files_missing:
        yield f"violation: {name} belongs to a completed request and is not there"
    for key in report.forgotten:
        yield f"violation: {key} never expires"
    if report.made_twice:
        yield f"violation: {report.made_twice} submits that were tried again made another request"
    for what, processes in (
        ("ended by itself", report.died),
        ("did not stop when told to", report.stuck),
        ("lived on", report.processes_left),
    ):
        yield from (f"violation: {process} {what}" for process in processes)
    yield from _broken_records(report)
    if report.plan.upgrade_from:
        yield from _broken_by_upgrade(report)
    limit = report.plan.lease_seconds + NOTICE_SECONDS
    late = [seconds for seconds in report.account.detection if seconds > limit]
    if late:
        yield f"violation: {len(late)} deaths were noticed after more than {limit:g} s"


def _broken_records(report: Report) -> Iterator[str]:
    """Of requests that end never, and of credits."""
    if len(report.unended) > report.gave_up:  # a submit that was given up may still wait
        yield from (f"violation: {name} waits or runs still" for name in report.unended)
    for name, books in report.books.items():
        yield from (f"violation: {name}: {error}" for error in books.errors())
    yield from (f"violation: {sentence}" for sentence in report.wrong_costs)


def _broken_by_upgrade(report: Report) -> Iterator[str]:
    """What may happen in chaos, and not while processes are replaced one by one."""
    for name, count in report.errors.items():
        if name[0].isdecimal():
            yield f"violation: {count} answers with status {name}"
    for count, requests in report.deliveries.items():
        if count != 1:
            yield f"violation: {requests} requests with {count} webhook deliveries"


def _listed(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def _credits(books: Mapping[str, Books]) -> str:
    accounts = books.values()
    sums = (
        sum((getattr(its, name) for its in accounts), Decimal(0))
        for name in ("charged", "balance", "reserved")
    )
    return ", ".join(map(str, sums))


def _detection(seconds: list[float]) -> str:
    if not seconds:
        return "none to detect"
    median = statistics.median(seconds)
    return f"median {median:.1f} s, longest {max(seconds):.1f} s, of {len(seconds)}"
