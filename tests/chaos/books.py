"""Whether every credit is where it must be, when all is quiet after the faults."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Self

from tests.chaos.accounting import COMPLETED
from tests.chaos.history import Event, What
from worker.billing import from_millionths

GRANTED = Decimal(100_000)
BASE, GPU_SECOND = Decimal(1), Decimal("0.25")
PRICES = {"MOCHI_PRICE_BASE": f"{BASE}", "MOCHI_PRICE_GPU_SECOND": f"{GPU_SECOND}"}
"""Of the gateways: a cost that is known before, and one that only the run's length tells."""
CACHED_SHARE = Decimal("0.25")
"""What a video of the result cache costs, of the run that made it."""
MILLIONTH = Decimal("0.000001")


@dataclass(frozen=True)
class Books:
    """The account of a key, in credits.

    Attributes:
        granted, balance, reserved, charged: what the broker says.
        told: the costs that clients were told, each request's once.
        unseen: the costs in the records of requests that no client knows.
    """

    granted: Decimal
    balance: Decimal
    reserved: Decimal
    charged: Decimal
    told: Decimal
    unseen: Decimal

    @classmethod
    def of(
        cls,
        account: Mapping[str, str],
        history: Iterable[Event],
        costs: Mapping[str, int],
    ) -> Self:
        """Read all that tells of credits.

        Args:
            account: the key's hash in the broker.
            history: what the clients saw.
            costs: millionths in each record.
        """
        told = {
            event.request_id: Decimal(str(json.loads(event.body)["metrics"]["cost"]))
            for event in history
            if event.what is What.ANSWERED and event.detail == COMPLETED
        }
        kept = {
            name: from_millionths(int(account.get(name, 0)))
            for name in ("granted", "balance", "reserved", "charged")
        }
        unseen = sum(cost for name, cost in costs.items() if name not in told)
        return cls(**kept, told=sum(told.values(), Decimal(0)), unseen=from_millionths(unseen))

    def errors(self) -> Iterator[str]:
        """A sentence for each rule that is broken."""
        held = self.balance + self.reserved + self.charged
        if held != self.granted:
            yield f"of {self.granted} credits that were granted, {held} are there"
        if self.reserved:
            yield f"{self.reserved} credits are reserved, and no request waits or runs"
        if self.charged != self.told + self.unseen:
            yield (
                f"{self.charged} credits were charged, and requests cost {self.told + self.unseen}"
            )


def wrong_costs(history: Sequence[Event], gpus: Iterable[int] = (1,)) -> Iterator[str]:
    """A sentence for each video that cost another amount than the times that clients saw say.

    A run is charged by its own time, a cached video by a share of a run that made the same frames.

    Args:
        history: what the clients saw; of an ACKNOWLEDGED request, `body` is what it asked for.
        gpus: how many GPUs a run may have had.
    """
    frames = {
        event.request_id: _frames_of(event.body)
        for event in history
        if event.what is What.ACKNOWLEDGED
    }
    metrics = {
        event.request_id: json.loads(event.body)["metrics"]
        for event in history
        if event.what is What.ANSWERED and event.detail == COMPLETED and event.request_id in frames
    }
    seconds: defaultdict[str, set[Decimal]] = defaultdict(set)
    for request_id, its in metrics.items():
        if "cached" not in its:
            seconds[frames[request_id]].add(_exactly(its["inference_time"]))
    for request_id, its in metrics.items():
        is_cached = "cached" in its
        times = seconds[frames[request_id]] if is_cached else {_exactly(its["inference_time"])}
        share = CACHED_SHARE if is_cached else Decimal(1)
        right = {
            (share * (BASE + GPU_SECOND * number * time)).quantize(MILLIONTH, ROUND_HALF_UP)
            for number in gpus
            for time in times
        }
        if (cost := _exactly(its["cost"])) not in right:
            kind = "a cached video" if is_cached else "a run"
            costs = " or ".join(map(str, sorted(right))) or "that of a run, and there was none"
            yield f"{request_id}: {kind} cost {cost}, and the price is {costs}"


def _frames_of(asked: str) -> str:
    """What decides the frames: of all that a request asked for, not `fps`."""
    fields: dict[str, Any] = json.loads(asked)
    return json.dumps({name: fields[name] for name in sorted(fields) if name != "fps"})


def _exactly(number: float) -> Decimal:
    """As it was written in an answer."""
    return Decimal(str(number))
