"""`mochi-server workers`: who works at what, and taking workers out of service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from redis import Redis
from rich.console import Console
from rich.table import Table

from server.cli.output import _console
from server.errors import CommandError
from server.keys.audit import Entry, Transaction, transaction
from worker.store.fleet import Worker, drain_order, fleet

LOOK_SECONDS = 0.5

_progress = Console(stderr=True)


class NoSuchWorkerError(CommandError):
    """No live worker has this name."""


def list_workers(redis: Redis, *, as_json: bool = False) -> None:
    """Print the live workers, as a table or for programs.

    Raises:
        BrokerUnavailableError: nobody can tell.
    """
    workers = fleet(redis)
    if as_json:
        sys.stdout.write(json.dumps([worker_row(worker) for worker in workers], indent=2) + "\n")
        return
    if not workers:
        _progress.print("No live worker: start one with `mochi-server worker`.", markup=False)
        return
    table = Table(box=None)
    for name in ("worker", "state", "request", "step", "engine"):
        table.add_column(name, overflow="fold")
    for worker in workers:
        table.add_row(worker.name, worker.state, *_run(worker), str(worker.engine or ""))
    _console.print(table, soft_wrap=True)


def drain_workers(redis: Redis, names: Sequence[str], *, wait: bool) -> None:
    """Have workers finish what they run, and end. With `wait`, until they have.

    Args:
        redis: the broker.
        names: of the workers; empty: all.
        wait: whether to stay until they have ended.

    Raises:
        NoSuchWorkerError: nobody was told anything.
        BrokerUnavailableError: it is not known whether they were told.
    """
    alive = [worker.name for worker in fleet(redis)]
    unknown = [name for name in names if name not in alive]
    if unknown:
        known = ", ".join(alive) or "there is none"
        raise NoSuchWorkerError(f"No live worker {unknown[0]}. Alive: {known}.")
    draining = set(names or alive)

    def decide(step: Transaction) -> None:
        for name in sorted(draining):
            step.write(*drain_order(name))
            step.note(Entry("drain", f"worker {name}"))

    transaction(redis, decide)
    if wait:
        _wait(redis, draining)


def worker_row(worker: Worker) -> dict[str, Any]:
    """All of a worker, for programs."""
    engine = None if worker.engine is None else asdict(worker.engine)
    return {"worker": worker.name, "state": worker.state, **run_of(worker), "engine": engine}


def run_of(worker: Worker) -> dict[str, Any]:
    """What a worker runs; no values when it runs nothing."""
    job = worker.job
    return {
        "request_id": job and job.request_id,
        "attempt": job and job.attempt,
        "step": job and job.step,
        "steps": job and job.params.steps,
    }


def _wait(redis: Redis, draining: set[str]) -> None:
    with _progress.status("Draining …") as status:
        while left := [worker for worker in fleet(redis) if worker.name in draining]:
            status.update("Draining: " + "; ".join(map(_describe, left)))
            time.sleep(LOOK_SECONDS)
    _progress.print(f"Drained: {', '.join(sorted(draining)) or 'there was none'}.", markup=False)


def _describe(worker: Worker) -> str:
    request, step = _run(worker)
    return f"{worker.name} finishes {request}, step {step}" if request else worker.name


def _run(worker: Worker) -> tuple[str, str]:
    if worker.job is None:
        return "", ""
    return worker.job.request_id, f"{worker.job.step}/{worker.job.params.steps}"
