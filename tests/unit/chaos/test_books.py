"""The books of the chaos run, on accounts and answers made by hand: they must see each error."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tests.chaos.books import Books
from tests.chaos.history import Event, What

KEPT = {"granted": 10_000_000, "balance": 7_500_000, "reserved": 0, "charged": 2_500_000}
COSTS = {"a": 1_250_000, "b": 1_250_000, "c": 0}


def told(request_id: str, cost: float) -> Event:
    body = json.dumps({"status": "COMPLETED", "metrics": {"cost": cost}})
    return Event(1, What.ANSWERED, request_id, detail="completed", body=body)


HISTORY = [
    told("a", 1.25),
    told("a", 1.25),
    told("b", 1.25),
    Event(2, What.ANSWERED, "c", detail="cancelled", body='{"metrics": {}}'),
]


def books(history: list[Event] = HISTORY, costs: dict[str, int] = COSTS, **kept: int) -> Books:
    account = {name: str(amount) for name, amount in (KEPT | kept).items()}
    return Books.of(account, history, costs)


def test_what_was_charged_once_for_each_video_is_in_order() -> None:
    assert list(books().errors()) == []
    assert books().told == Decimal("2.5")


def test_what_no_client_knows_of_may_be_charged() -> None:
    assert list(books(history=[told("a", 1.25)]).errors()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (books(balance=7_500_001), "of 10 credits that were granted, 10.000001 are there"),
        (books(reserved=1_000_000, balance=6_500_000), "1 credits are reserved, and no request"),
        (books(charged=1_250_000, balance=8_750_000), "1.25 credits were charged, and requests"),
        (books(history=[told("a", 1), told("b", 1.25)]), "2.5 credits were charged, and requests"),
    ],
)
def test_each_error_is_seen(wrong: Books, words: str) -> None:
    (error,) = wrong.errors()
    assert error.startswith(words)
