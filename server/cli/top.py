"""`mochi-server top`: queue, workers and requests, live."""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.cli.administer.workers import worker_row
from server.cli.options import BROKER, AsJson, running_broker, settings_options
from server.cli.output import console
from server.keys.times import broker_time, to_ms
from worker.broker.connection import Client, broker_errors
from worker.errors import BrokerUnavailableError
from worker.job import NOT_FAILURES, Job
from worker.store.fleet import Worker, first_waiting, fleet, survey
from worker.store.reports.statistics import Survey

EVERY_SECONDS = 1.0
MOST_WAITING = 10
"""Waiting requests shown: the next ones."""
QUIT = b"q"
CUT_FIRST = frozenset({"worker", "engine"})
"""Columns that a narrow terminal cuts."""


@dataclass(frozen=True)
class Picture:
    """The state at one moment. `now_ms` is by the broker's clock, as all times of requests are."""

    now_ms: int
    figures: Survey
    workers: list[Worker]
    next: list[Job]

    @classmethod
    def taken(cls, redis: Client) -> Picture:
        with broker_errors():
            now = to_ms(broker_time(redis))
        return cls(now, survey(redis), fleet(redis), first_waiting(redis, MOST_WAITING))

    def seconds_since(self, moment_ms: int | None) -> float | None:
        return None if moment_ms is None else round(max(0, self.now_ms - moment_ms) / 1000, 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "waiting": self.figures.waiting,
            "running": self.figures.running,
            "oldest_waiting_seconds": self.figures.oldest_seconds,
            "ended": dict(self.figures.counts.get("ended", {})),
            "workers": [
                worker_row(worker)
                | {"run_seconds": worker.job and self.seconds_since(worker.job.started_at)}
                for worker in self.workers
            ],
            "next": [
                {
                    "request_id": job.request_id,
                    "model": job.model,
                    "position": job.position,
                    "waited_seconds": self.seconds_since(job.created_at),
                    "frames": job.params.frames,
                    "steps": job.last_step,
                    "attempts": job.attempt,
                }
                for job in self.next
            ],
        }


@settings_options(*BROKER)
def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print once, as when the output is not a terminal.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show queue, workers and requests live.

    The display is renewed every second; q or Ctrl-C ends it.

    Example: `mochi-server top --redis-url redis://broker:6379/0`

    For a script: `mochi-server top --once --json`
    """
    with running_broker() as redis:
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _print(Picture.taken(redis), as_json=as_json)
        else:
            _watch(redis, as_json=as_json)


def _print(picture: Picture, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(picture.as_json()) + "\n")
        sys.stdout.flush()
    else:
        console.print(drawn(picture), soft_wrap=True)


def _watch(redis: Client, *, as_json: bool) -> None:
    screen = nullcontext() if as_json else Live(console=console, screen=True, auto_refresh=False)
    with suppress(KeyboardInterrupt), _keys_at_once(), screen as live:
        while True:
            if live is None:
                _print(Picture.taken(redis), as_json=True)
            else:
                live.update(_drawn_now(redis), refresh=True)
            if _typed_quit():
                return


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Read keys without waiting for Enter, and do not echo them."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _typed_quit() -> bool:
    """Wait a second; return early and True if q was typed."""
    ready, _, _ = select.select([sys.stdin], [], [], EVERY_SECONDS)
    # Not with `sys.stdin`, as `select` does not see what that has read ahead. b"": it is gone.
    return bool(ready) and QUIT in (os.read(sys.stdin.fileno(), 1024) or QUIT)


def _drawn_now(redis: Client) -> RenderableType:
    try:
        return drawn(Picture.taken(redis))
    except BrokerUnavailableError as error:
        return Text(error.advice, style="red")


def drawn(picture: Picture) -> RenderableType:
    figures = picture.figures
    ended = figures.counts.get("ended", {})
    wanted = {name: ended.get(name, 0) for name in ("completed", *sorted(NOT_FAILURES))}
    failed = sum(ended.values()) - sum(wanted.values())
    oldest = f" (the oldest for {figures.oldest_seconds:.0f} s)" if figures.waiting else ""
    head = Text.assemble(
        (f"{figures.waiting} waiting", "bold"),
        f"{oldest}, ",
        (f"{figures.running} running", "bold"),
        f"; ended: {wanted['completed']} completed, {failed} failed, "
        f"{wanted['cancelled']} cancelled, {wanted['content_blocked']} blocked",
    )
    workers = [_worker_row(picture, worker) for worker in picture.workers]
    waiting = [_waiting_row(picture, job) for job in picture.next]
    return Group(
        head,
        "",
        _table(workers) if workers else Text("No live worker.", style="red"),
        *(("", _table(waiting)) if waiting else ()),
    )


def _worker_row(picture: Picture, worker: Worker) -> dict[str, Any]:
    """The most important columns come first: a narrow terminal cuts the last ones."""
    job = worker.job
    return {
        "request_id": job.request_id if job else "",
        "step": f"{job.step}/{job.last_step}" if job else "",
        "for": _seconds(picture.seconds_since(job.started_at)) if job else "",
        "state": job.stage if job and worker.state == "running" else worker.state,
        "run": job.attempt if job else "",
        "worker": worker.name,
        "engine": worker.engine or "",
    }


def _waiting_row(picture: Picture, job: Job) -> dict[str, Any]:
    return {
        "request_id": job.request_id,
        "model": job.model,
        "place": job.position,
        "for": _seconds(picture.seconds_since(job.created_at)),
        "frames": job.params.frames,
        "steps": job.last_step,
        "runs": job.attempt,
    }


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for name in rows[0]:
        widest = max(len(str(row[name])) for row in rows)
        least = None if name in CUT_FIRST else max(widest, len(name))
        table.add_column(name.replace("_", " "), no_wrap=True, min_width=least)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    return table
