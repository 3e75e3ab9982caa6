"""One experiment: start, load, break, heal, wait for quiet, stop, add up."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from models.request.params import MODEL
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.processes import START_SECONDS, BenchError, wait_until_ready
from tests.chaos.accounting import account
from tests.chaos.books import GRANTED, Books, wrong_costs
from tests.chaos.brokers import (
    Broker,
    Record,
    accounts_of,
    cache_counts,
    external_broker,
    forgotten_keys,
    own_broker,
    records_of,
)
from tests.chaos.clients import Clients
from tests.chaos.faults import OF_WORKERS, Fault, Kind, rolls, schedule
from tests.chaos.fleet import Fleet, Member, loras_of, models_of
from tests.chaos.history import Event, events_of, read_log
from tests.chaos.releases import has_history, unpack
from tests.chaos.report import Plan, Report
from tests.support.services.receiver import Receiver, receiver
from worker.broker.connection import broker_errors, connect_briefly
from worker.settings import WorkerSettings

GATEWAYS = 2
KEYS = 4
"""API keys, whose requests the clients make by turns."""
QUIET_SECONDS = 120.0
"""The longest wait for the last request to end, when all is healed."""
WATCH_SECONDS = 0.2
UNENDED = {"QUEUED", "PROCESSING"}
RARER_WITH_GROUPS = 4.0
"""A group takes long to load, and slows the start of other workers: without pauses between the
faults no worker would live when a dead one is to be noticed."""
AWAKE_SECONDS = 3.0
"""From the end of a worker's pause to its SIGTERM: it may write what it believes to own."""
HURRY_SECONDS = 0.3
"""Between the two signals that make a worker requeue what it runs."""


def experiment(plan: Plan, folder: Path, redis_url: str = "") -> Report:
    """Run `plan`, with everything that it writes in `folder`.

    Args:
        plan: how much of what, for how long.
        folder: an empty one.
        redis_url: of the broker; empty: one of our own.

    Raises:
        BenchError: a process does not start, the broker's database is not empty, or the commit of
            the release to upgrade from is not in this clone.
        BrokerUnavailableError: the broker does not answer.
    """
    history: list[Event] = []
    broker = external_broker(redis_url) if redis_url else own_broker(folder, history.append)
    with broker as its:
        faults = (
            rolls(seconds=plan.seconds, workers=plan.workers, gateways=GATEWAYS)
            if plan.upgrade_from
            else schedule(
                plan.seed,
                seconds=plan.seconds,
                workers=plan.workers,
                gateways=GATEWAYS,
                lease_seconds=plan.lease_seconds,
                broker=its.fault,
                rarer=RARER_WITH_GROUPS if plan.groups else 1.0,
            )
        )
        report = asyncio.run(_Experiment(plan, folder, its, faults, history).run())
    report.processes_left = _processes_of(folder)
    if not report.is_clean:
        _keep(folder, history, faults)
    return report


class _Experiment:
    def __init__(
        self, plan: Plan, folder: Path, broker: Broker, faults: list[Fault], history: list[Event]
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._broker = broker
        self._faults = faults
        self._history = history
        self._done: Counter[Kind] = Counter()

    async def run(self) -> Report:
        with broker_errors(), connect_briefly(self._broker.url) as redis:
            self._keys = {
                name: create_key(redis, NewKey(name=name, credits=GRANTED))
                for name in (f"chaos-{number}" for number in range(KEYS))
            }
        lease = self._plan.lease_seconds
        with (
            _webhooks(self._plan) as hook,
            Fleet(
                self._folder,
                self._broker.url,
                lease_seconds=lease,
                note=self._history.append,
                groups=self._plan.groups,
                older=_older_release(self._plan, self._folder),
            ) as fleet,
        ):
            urls = fleet.start(gateways=GATEWAYS, workers=self._plan.workers)
            offers = _offers(self._plan)
            async with Clients(
                urls,
                [*self._keys.values()],
                self._history.append,
                hook.url,
                offers,
                makes_drafts=not self._plan.upgrade_from,
                compares=not (self._plan.groups or self._plan.upgrade_from),  # of other pictures
            ) as clients:
                quiet = await self._load_and_break(fleet, clients)
                await clients.look_again()
                deliveries = await _deliveries(hook, clients.ids) if hook.url else {}
            stuck = fleet.stop()
            report = self._report(fleet, clients, quiet, stuck)
        report.deliveries = deliveries
        return report

    async def _load_and_break(self, fleet: Fleet, clients: Clients) -> float | None:
        """Returns the seconds from the last fault to quiet."""
        plan = self._plan
        with _progress(plan, clients, self._done) as show:
            background = [
                asyncio.create_task(clients.poll()),
                asyncio.create_task(_every(WATCH_SECONDS, fleet.watch)),
                asyncio.create_task(_every(WATCH_SECONDS, show)),
            ]
            try:
                if plan.upgrade_from:
                    roll = asyncio.create_task(self._roll(fleet, clients))
                    await clients.submit_while(lambda: not roll.done(), plan.seconds / plan.jobs)
                    await roll
                else:
                    await asyncio.gather(
                        asyncio.sleep(plan.seconds),
                        clients.submit_all(plan.jobs, plan.seconds),
                        *(self._inject(fault, fleet) for fault in self._faults),
                    )
                return await clients.until_quiet(QUIET_SECONDS)
            finally:
                for task in background:
                    task.cancel()
                for task in background:
                    with suppress(asyncio.CancelledError):
                        await task

    async def _inject(self, fault: Fault, fleet: Fleet) -> None:
        await asyncio.sleep(fault.at)
        if fault.kind in OF_WORKERS and fleet.is_loading_group(fault.target):
            return  # or no fault would ever hit a group that works
        self._done[fault.kind] += 1
        match fault.kind:
            case Kind.KILL_WORKER:
                fleet.kill_worker(fault.target)
            case Kind.DRAIN_WORKER:
                fleet.stop_worker(fault.target)
            case Kind.HURRY_WORKER:
                leaver = fleet.stop_worker(fault.target)
                await asyncio.sleep(HURRY_SECONDS)
                fleet.hurry(leaver)
            case Kind.PAUSE_WORKER:
                sleeper = fleet.pause_worker(fault.target)
                await asyncio.sleep(fault.seconds)
                fleet.resume(sleeper)
                await asyncio.sleep(AWAKE_SECONDS)
                sleeper.process.terminate()
            case Kind.KILL_GATEWAY:
                fleet.kill_gateway(fault.target)
            case Kind.BROKER | Kind.CONNECTIONS:
                await self._broker.fail(fault.seconds)

    async def _roll(self, fleet: Fleet, clients: Clients) -> None:
        """Replace one process after the other, each when its successor serves.

        It takes as long as they take to start, and at least the seconds of the plan.
        """
        started = time.monotonic()
        for step in self._faults:
            await asyncio.sleep(max(0.0, started + step.at - time.monotonic()))
            self._done[step.kind] += 1
            old_url = fleet.url(step.target) if step.kind is Kind.ROLL_GATEWAY else ""
            leaver, successor = fleet.start_successor(step.kind, step.target)
            if old_url:
                url = fleet.url(step.target)
                await asyncio.to_thread(wait_until_ready, f"{url}/readyz")
                clients.move(old_url, url)
            else:
                await _signed_on(successor)
            fleet.retire(leaver)
        await asyncio.sleep(max(0.0, started + self._plan.seconds - time.monotonic()))

    def _report(
        self, fleet: Fleet, clients: Clients, quiet: float | None, stuck: list[str]
    ) -> Report:
        self._history.extend(event for log in fleet.worker_logs() for event in events_of(log))
        records = records_of(self._broker.url)
        files = {its.file_name for its in records.values() if its.file_name}
        outputs = WorkerSettings(data_dir=self._folder).outputs_dir
        kept = {path.name for path in outputs.glob("*.mp4*")} if outputs.exists() else set()
        bugs = Counter(
            line["event"]
            for log in fleet.logs()
            for line in read_log(log)
            if line.get("level") in {"error", "critical"}
        )
        return Report(
            plan=self._plan,
            account=account(self._history, lease_seconds=self._plan.lease_seconds),
            faults=dict(self._done),
            quiet_seconds=quiet,
            errors=dict(clients.errors),
            replayed=clients.replayed,
            gave_up=clients.gave_up,
            unseen=len(records) - clients.acknowledged,
            unended=sorted(name for name in records if records[name].status in UNENDED),
            files_left=sorted(kept - files),
            files_missing=sorted(files - kept),
            died=fleet.died,
            stuck=stuck,
            logged_errors=dict(bugs),
            books=self._books(clients, records),
            wrong_costs=[*wrong_costs(self._history, (1, 2) if self._plan.groups else (1,))],
            kinds=clients.kinds,
            cache=cache_counts(self._broker.url),
            forgotten=forgotten_keys(self._broker.url),
        )

    def _books(self, clients: Clients, records: dict[str, Record]) -> dict[str, Books]:
        """Of each API key, by its name: what the clients know to be its own, and its records."""
        books = {}
        for owner, its_account in accounts_of(self._broker.url).items():
            name = its_account["name"]
            own = clients.ids_of(self._keys[name])
            seen = [event for event in self._history if event.request_id in own]
            costs = {one: its.cost for one, its in records.items() if its.owner == owner}
            books[name] = Books.of(its_account, seen, costs)
        return dict(sorted(books.items()))


async def _signed_on(worker: Member) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "worker.ready" not in worker.log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise BenchError(f"{worker.name} is not ready after {START_SECONDS:g} seconds.")
        await asyncio.sleep(WATCH_SECONDS)


def _offers(plan: Plan) -> dict[str, list[str]]:
    """The models that there are workers for, each with the most LoRAs that one of them has.

    Of an older release, the default model alone.
    """
    if plan.upgrade_from:
        return {MODEL: []}
    offers: dict[str, list[str]] = {}
    for place in range(plan.workers):
        loras = loras_of(place).split(",")
        for slug in models_of(place, plan.groups).split(","):
            offers[slug] = max(offers.get(slug, []), loras, key=len)
    return dict(sorted(offers.items()))


def _older_release(plan: Plan, folder: Path) -> Path | None:
    if not plan.upgrade_from:
        return None
    if not has_history(plan.upgrade_from):
        raise BenchError(
            f"This clone has no commit {plan.upgrade_from}. Fetch the history: `git fetch --tags "
            "--unshallow`."
        )
    return unpack(plan.upgrade_from, folder / "older")


def _webhooks(plan: Plan) -> AbstractContextManager[Receiver]:
    """A receiver, where it is to count deliveries; kills make some of them come twice."""
    return receiver() if plan.upgrade_from else nullcontext(Receiver())


async def _deliveries(hook: Receiver, ids: set[str]) -> dict[int, int]:
    """How many requests had so many deliveries, when each has had one or none comes any more."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        counts = Counter(call.headers["webhook-id"] for call in list(hook.calls))
        if ids <= counts.keys() or time.monotonic() > deadline:
            return dict(sorted(Counter(counts[request_id] for request_id in ids).items()))
        await asyncio.sleep(WATCH_SECONDS)


async def _every(seconds: float, act: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(seconds)
        act()


@contextmanager
def _progress(plan: Plan, clients: Clients, done: Counter[Kind]) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("breaking", total=plan.seconds, told="")
        started = time.monotonic()

        def show() -> None:
            seconds = time.monotonic() - started
            left = max(0.0, plan.seconds - seconds)
            told = f"{left:.0f} s left" if left else f"{seconds - plan.seconds:.0f} s"
            told += f", {clients.acknowledged} acknowledged, {clients.terminal} ended"
            progress.update(
                bar,
                description="breaking" if left else "waiting for quiet",
                completed=seconds,
                told=f"{told}, {done.total()} faults",
            )

        yield show


def _processes_of(folder: Path) -> list[int]:
    """Other processes that work in the folder still, where there is a /proc (Linux)."""
    name = str(folder).encode()
    found = []
    for process in set(Path("/proc").glob("[0-9]*")) - {Path(f"/proc/{os.getpid()}")}:
        with suppress(OSError):  # it has ended, or is another user's
            if name in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _keep(folder: Path, history: list[Event], faults: list[Fault]) -> None:
    """For the reader of the folder."""
    in_order = sorted(history, key=lambda event: event.at)
    lines = (json.dumps(asdict(event)) for event in in_order)
    (folder / "history.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults], indent=2))
