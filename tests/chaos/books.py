"""Whether every credit is where it must be, when all is quiet after the faults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Self

from tests.chaos.accounting import COMPLETED
from tests.chaos.history import Event, What
from worker.billing import from_millionths

GRANTED = Decimal(100_000)
PRICES = {"MOCHI_PRICE_BASE": "1", "MOCHI_PRICE_GPU_SECOND": "0.25"}
"""Of the gateways: a cost that is known before, and one that only the run's length tells."""


@dataclass(frozen=True)
class Books:
    """The account of the experiment's key, in credits.

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
