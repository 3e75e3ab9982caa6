"""`python -m tests.bench cluster`: where one broker and one gateway process end.

A queue of many requests, many workers at the estimated speed of an H100, and clients of one kind
after the other. What a round takes more than the workers alone is what its clients cost the broker
and the gateway in CPU time. Other load on the machine makes calls slower and fewer, and changes the
CPU time of one little. What one core could carry is extrapolated from it: an estimate.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from redis import Redis
from rich.console import Console
from rich.table import Table

from models.mock.card_speed import MockSpeed
from models.request.params import GenerateParams
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.bench.cluster.clients import BODY, Clients
from tests.bench.cluster.workers import Fleet, Times, fleet
from tests.bench.processes import Server, gateway, own_broker
from worker.broker.connection import connect_briefly
from worker.store import keyspace, scripts
from worker.store.keyspace import HEARTBEAT_SECONDS

KEYS = 20
WIDTH = 120
SPEED = "h100"
SETTLE_SECONDS = 3.0
TOP_UP_SECONDS = 1.0
SCRAPES = 20
SAMPLE_SECONDS = 3.0
"""For which the broker tells each command that it gets."""

_console = Console(stderr=True)


@dataclass(frozen=True)
class Sizes:
    """How much of each there is."""

    workers: int
    waiting: int
    clients: int
    """Of each kind."""
    seconds: float


@dataclass(frozen=True)
class Moment:
    """Figures since the start of the processes.

    Attributes:
        broker: CPU seconds of its main thread, which runs all commands.
        gateway: CPU seconds of the process.
        counts: of the clients.
    """

    at: float
    broker: float
    gateway: float
    counts: Counter[str]


@dataclass(frozen=True)
class Round:
    """One round, from `before` to `after`.

    Attributes:
        name: what it has added.
        times: seconds of calls, by name.
    """

    name: str
    before: Moment
    after: Moment
    times: Mapping[str, list[float]]

    @property
    def seconds(self) -> float:
        return self.after.at - self.before.at

    @property
    def broker(self) -> float:
        """Share of a core."""
        return (self.after.broker - self.before.broker) / self.seconds

    @property
    def gateway(self) -> float:
        """Share of a core."""
        return (self.after.gateway - self.before.gateway) / self.seconds

    def rate(self, name: str) -> float:
        """A second."""
        return (self.after.counts[name] - self.before.counts[name]) / self.seconds


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one unit."""

    unit: str
    broker: float
    gateway: float


@dataclass
class Cluster:
    """What is measured."""

    redis: Redis
    server: Server
    clients: Clients
    fleet: Fleet

    def now(self) -> Moment:
        cpu = self.redis.info("cpu")
        return Moment(
            time.monotonic(),
            cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"],
            self.server.cpu_seconds() or 0.0,
            self.clients.counts.copy(),
        )

    async def measure(
        self, name: str, seconds: float, act: Callable[[], Awaitable[object]] | None = None
    ) -> Round:
        """A round of `seconds`, or as long as `act` takes."""
        _console.print(f"{name} …")
        self.fleet.take_times()
        self.clients.times.clear()
        before = self.now()
        await (act() if act else asyncio.sleep(seconds))
        after = self.now()
        times: Times = self.fleet.take_times()
        return Round(name, before, after, {**times, **self.clients.times})


def run(sizes: Sizes) -> None:
    """Measure, and print tables."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as processes:
        folder = Path(name)
        url = processes.enter_context(own_broker(folder))
        redis = processes.enter_context(connect_briefly(url))
        keys = [create_key(redis, NewKey(name=f"bench-{number}")) for number in range(KEYS)]
        admin = create_key(redis, NewKey(name="metrics", scopes=["admin"]))
        server = processes.enter_context(
            gateway(url, folder, MOCHI_WEBHOOK_ALLOW="127.0.0.1", MOCHI_METRICS_PUBLIC="true")
        )
        workers = processes.enter_context(fleet())
        cluster = Cluster(redis, server, Clients(server.url, keys), workers)
        settings = {"redis_url": url, "data_dir": str(folder), "mock_speed": SPEED}
        asyncio.run(_measure(cluster, sizes, settings, admin))


async def _measure(cluster: Cluster, sizes: Sizes, settings: dict[str, str], admin: str) -> None:
    clients, redis, url = cluster.clients, cluster.redis, settings["redis_url"]
    await clients.serve_webhooks()

    async def fill() -> None:
        await clients.fill(url, sizes.waiting)

    empty = _memory(redis)
    rounds = [
        await cluster.measure("nothing", sizes.seconds),
        await cluster.measure(
            f"{sizes.waiting} submits", 0, lambda: clients.fill(url, sizes.waiting)
        ),
    ]
    filled = _memory(redis)
    params = GenerateParams.model_validate({**BODY, "seed": 1})
    run_seconds = params.steps * MockSpeed.parse(SPEED).step_seconds(params)
    _console.print(f"{sizes.workers} workers start within {run_seconds:.0f} s …")
    await asyncio.to_thread(cluster.fleet.start, sizes.workers, settings, run_seconds)
    topping_up = asyncio.create_task(_top_up(cluster, sizes.waiting))
    await asyncio.sleep(run_seconds + SETTLE_SECONDS)
    rounds.append(await cluster.measure(f"{sizes.workers} workers", sizes.seconds))
    rounds.append(
        await cluster.measure(f"{SCRAPES} scrapes", 0, lambda: clients.scrape(admin, SCRAPES))
    )
    commands = await asyncio.to_thread(_commands, redis)
    for name, start in (
        ("pollers", clients.start_pollers),
        ("listeners", clients.start_listeners),
        ("blocking calls", clients.start_blockers),
    ):
        await start(sizes.clients)
        await asyncio.sleep(SETTLE_SECONDS)
        rounds.append(await cluster.measure(f"{sizes.clients} {name}", sizes.seconds))
        await clients.stop()
        await asyncio.sleep(SETTLE_SECONDS)  # the gateway cancels what blocking calls have left
    topping_up.cancel()
    console = Console(width=WIDTH)
    console.print(_rounds_table(rounds))
    console.print(_latencies_table(rounds))
    console.print(_costs_table(rounds, sizes))
    console.print(_commands_table(commands))
    connected = redis.info("clients")["connected_clients"]
    console.print(
        f"Memory of the broker: {(filled - empty) / sizes.waiting:.0f} bytes a waiting request; "
        f"{connected} connections. Errors of clients: {clients.counts['errors']}."
    )


async def _top_up(cluster: Cluster, waiting: int) -> None:
    """Keep the queue as long as it was."""
    while True:
        missing = waiting - int(str(cluster.redis.zcard(keyspace.WAITING)))
        if missing > 0:
            await cluster.clients.submit(missing, connections=min(missing, 4))
        await asyncio.sleep(TOP_UP_SECONDS)


def _memory(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _commands(redis: Redis) -> Counter[str]:
    """Commands a second by kind, of a moment: scripts by their names."""
    folder = Path(scripts.__file__).with_name("lua")
    names = [path.stem for path in folder.glob("*/*.lua") if path.parent.name != "common"]
    by_digest = {sha1(scripts.source(name).encode()).hexdigest(): name for name in names}  # noqa: S324 (Redis' own name of a script)
    seen: Counter[str] = Counter()
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis-py's
        until = time.monotonic() + SAMPLE_SECONDS
        for command in monitor.listen():
            if time.monotonic() > until:
                break
            if command["client_type"] != "lua":
                name, _, rest = command["command"].partition(" ")
                seen[by_digest.get(rest.partition(" ")[0], name)] += 1
    return seen


def costs(rounds: list[Round], sizes: Sizes) -> list[Cost]:
    """What each round has added, by its unit."""
    nothing, fill, workers, scrapes, pollers, listeners, blockers = rounds
    # A busy machine runs fewer heartbeats than `sizes.workers` would send.
    beating = len(workers.times["beat"]) * HEARTBEAT_SECONDS / workers.seconds
    return [
        _cost("submit (broker alone)", fill, nothing, sizes.waiting / fill.seconds),
        _cost("worker, for a second", workers, nothing, beating),
        _cost("poll", pollers, workers, pollers.rate("poll")),
        _cost("listener, for a second", listeners, workers, sizes.clients),
        _cost("blocking call, for a second", blockers, workers, sizes.clients),
        _cost("scrape", scrapes, workers, SCRAPES / scrapes.seconds),
    ]


def _cost(unit: str, with_it: Round, without: Round, count: float) -> Cost:
    return Cost(
        unit,
        (with_it.broker - without.broker) / count,
        (with_it.gateway - without.gateway) / count,
    )


def _rounds_table(rounds: list[Round]) -> Table:
    table = Table(title="Share of a core")
    calls = ("poll", "event", "submit", "delivery")
    for heading in ("round", "broker", "gateway", *(f"{call} a s" for call in calls)):
        table.add_column(heading, justify="left" if heading == "round" else "right")
    for each in rounds:
        rates = map(each.rate, calls)
        table.add_row(
            each.name,
            f"{each.broker:.1%}",
            f"{each.gateway:.1%}",
            *(f"{rate:.1f}" if rate else "" for rate in rates),
        )
    return table


def _latencies_table(rounds: list[Round]) -> Table:
    """Of all rounds, p50 / p99 in ms."""
    names = ("submit", "poll", "scrape", "pop", "start", "beat", "overdue", "finish")
    table = Table(title="Milliseconds, p50 / p99")
    table.add_column("round")
    for name in names:
        table.add_column(name, justify="right")
    for each in rounds:
        table.add_row(each.name, *(_percentiles(each.times.get(name, [])) for name in names))
    return table


def _percentiles(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return ""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{1000 * cuts[49]:.1f} / {1000 * cuts[98]:.1f}"


def _costs_table(rounds: list[Round], sizes: Sizes) -> Table:
    table = Table(title="CPU of one unit, and how many a second fill a core (estimate)")
    for heading in ("unit", "broker us", "gateway us", "a broker", "a gateway"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for cost in costs(rounds, sizes):
        table.add_row(
            cost.unit,
            f"{1e6 * cost.broker:.0f}",
            f"{1e6 * cost.gateway:.0f}",
            *(f"{1 / share:,.0f}" if share > 0 else "" for share in (cost.broker, cost.gateway)),
        )
    return table


def _commands_table(commands: Counter[str]) -> Table:
    table = Table(title="Commands of the workers and the gateway alone")
    table.add_column("command")
    table.add_column("a second", justify="right")
    for name, count in commands.most_common():
        table.add_row(name, f"{count / SAMPLE_SECONDS:.1f}")
    return table
