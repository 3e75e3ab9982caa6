"""Which faults come when: all drawn from one seed, before anything is started."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What may be done to the processes."""

    KILL_WORKER = "worker killed"
    DRAIN_WORKER = "worker told to stop"
    HURRY_WORKER = "worker told to stop at once"
    PAUSE_WORKER = "worker paused"
    BROKER = "broker killed"
    CONNECTIONS = "connections dropped"
    KILL_GATEWAY = "gateway killed"
    ROLL_WORKER = "worker replaced by another release"
    ROLL_GATEWAY = "gateway replaced by another release"


OF_WORKERS = {Kind.KILL_WORKER, Kind.DRAIN_WORKER, Kind.HURRY_WORKER, Kind.PAUSE_WORKER}

PAUSES: dict[Kind, tuple[float, float]] = {
    Kind.KILL_WORKER: (1.0, 2.5),
    Kind.DRAIN_WORKER: (5.0, 10.0),
    Kind.HURRY_WORKER: (5.0, 10.0),
    Kind.PAUSE_WORKER: (4.0, 10.0),
    Kind.BROKER: (6.0, 10.0),
    Kind.CONNECTIONS: (6.0, 10.0),
    Kind.KILL_GATEWAY: (5.0, 10.0),
}
"""Seconds between two of a kind, and before the first: least and most."""
BROKER_AWAY_SECONDS = 3.0
LEASES_PAUSED = (1.2, 1.8)
"""For how many leases a worker is paused: least and most."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds from the begin.
        kind: see `Kind`.
        target: which worker or gateway, from 0.
        seconds: for how long, where it lasts.
    """

    at: float
    kind: Kind
    target: int = 0
    seconds: float = 0.0


def schedule(
    seed: int,
    *,
    seconds: float,
    workers: int,
    gateways: int,
    lease_seconds: float,
    broker: Kind,
    rarer: float = 1.0,
) -> list[Fault]:
    """The faults of an experiment, by time; each ends before the experiment does.

    Args:
        seed: the same one gives the same faults, whatever else is the same.
        seconds: how long the experiment lasts.
        workers: how many there are at any time.
        gateways: how many there are.
        lease_seconds: a worker is paused for longer.
        broker: which of its two faults a broker has.
        rarer: factor of the pauses between faults.
    """
    draw = random.Random(seed)
    faults: list[Fault] = []
    for kind in PAUSES:
        if kind in {Kind.BROKER, Kind.CONNECTIONS} and kind is not broker:
            continue
        targets = {Kind.BROKER: 1, Kind.CONNECTIONS: 1, Kind.KILL_GATEWAY: gateways}
        for at in _times(draw, kind, seconds, rarer):
            target = draw.randrange(targets.get(kind, workers))
            lasting = _lasting(draw, kind, lease_seconds)
            if at + lasting < seconds:
                faults.append(Fault(at, kind, target, lasting))
    return sorted(faults, key=lambda fault: fault.at)


def rolls(*, seconds: float, workers: int, gateways: int) -> list[Fault]:
    """An upgrade, workers first, and a rollback, gateways first, evenly over so many seconds."""
    all_workers = [(Kind.ROLL_WORKER, place) for place in range(workers)]
    all_gateways = [(Kind.ROLL_GATEWAY, place) for place in range(gateways)]
    steps = [*all_workers, *all_gateways, *all_gateways, *all_workers]
    pause = seconds / (len(steps) + 1)
    return [Fault(pause * number, *step) for number, step in enumerate(steps, 1)]


def _times(draw: random.Random, kind: Kind, seconds: float, rarer: float) -> Iterator[float]:
    at = rarer * draw.uniform(*PAUSES[kind])
    while at < seconds:
        yield at
        at += rarer * draw.uniform(*PAUSES[kind])


def _lasting(draw: random.Random, kind: Kind, lease_seconds: float) -> float:
    match kind:
        case Kind.PAUSE_WORKER:
            return lease_seconds * draw.uniform(*LEASES_PAUSED)
        case Kind.BROKER:  # half of them at once
            return max(0.0, draw.uniform(-BROKER_AWAY_SECONDS, BROKER_AWAY_SECONDS))
        case _:
            return 0.0
