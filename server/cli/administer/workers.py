"""`mochi-server workers`: list the live workers, and drain them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from server.cli.options import BROKER, AsJson, fail, running_broker, settings_options
from server.cli.output import errors, print_json, print_table
from server.errors import NO_WORKER, CommandError
from server.keys.audit import Entry, Transaction, transaction
from worker.broker.connection import Client
from worker.store.fleet import Worker, drain_order, fleet

LOOK_SECONDS = 0.5

workers = typer.Typer(help="List and drain workers.", no_args_is_help=True)


class NoSuchWorkerError(CommandError):
    """No live worker has this name."""


@workers.command("list")
@settings_options(*BROKER)
def list_workers(as_json: AsJson = False) -> None:
    """List the live workers and their current requests.

    Example: `mochi-server workers list --redis-url redis://broker:6379/0`
    """
    with running_broker() as redis:
        found = fleet(redis)
    if as_json:
        print_json([worker_row(worker) for worker in found])
    elif found:
        print_table(
            ("worker", "state", "request", "step", "models", "version", "engine"),
            (
                (
                    *(each.name, each.state, *_run(each)),
                    *(" ".join(each.models), each.version, each.engine or ""),
                )
                for each in found
            ),
        )
    else:
        errors.print(NO_WORKER)


@workers.command("drain")
@settings_options(*BROKER)
def drain(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names that `workers list` shows.")
    ] = None,
    all: Annotated[  # noqa: A002 (an option)
        bool, typer.Option("--all", help="Drain every live worker.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until they have exited.")
    ] = True,
) -> None:
    """Let workers finish their current request, take no more, and exit with status 0.

    A supervisor like `up` then restarts them, perhaps with another version.

    Example: `mochi-server workers drain gpu1-4711-1f2e3d4c`
    """
    if all == bool(names):
        fail("Name the workers to drain, as `mochi-server workers list` shows, or give --all.", 2)
    with running_broker() as redis:
        drain_workers(redis, names or [], wait=wait)


def drain_workers(redis: Client, names: Sequence[str], *, wait: bool) -> None:
    """Order workers to drain; without names, all. `wait` until they have exited.

    Raises:
        NoSuchWorkerError: a name is unknown; no worker was ordered to drain.
        BrokerUnavailableError: it is unknown whether the order was given.
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
    """A worker as JSON. The fields of its request are None when it is idle."""
    job = worker.job
    return {
        "worker": worker.name,
        "state": worker.state,
        "request_id": job and job.request_id,
        "attempt": job and job.attempt,
        "step": job and job.step,
        "steps": job and job.last_step,
        "engine": worker.engine and asdict(worker.engine),
        "version": worker.version,
        "models": list(worker.models),
    }


def _wait(redis: Client, draining: set[str]) -> None:
    with errors.status("Draining …") as status:
        while left := [worker for worker in fleet(redis) if worker.name in draining]:
            status.update("Draining: " + "; ".join(map(_describe, left)))
            time.sleep(LOOK_SECONDS)
    errors.print(f"Drained: {', '.join(sorted(draining)) or 'there was none'}.")


def _describe(worker: Worker) -> str:
    request, step = _run(worker)
    return f"{worker.name} finishes {request}, step {step}" if request else worker.name


def _run(worker: Worker) -> tuple[str, str]:
    if worker.job is None:
        return "", ""
    return worker.job.request_id, f"{worker.job.step}/{worker.job.last_step}"
