"""The books of the chaos run, on accounts and answers made by hand: they must see each error."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.chaos.books import Books, wrong_costs
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


def priced(request_id: str, *, prompt: str = "a cat", fps: int = 24, **metrics: Any) -> list[Event]:
    asked, body = {"prompt": prompt, "fps": fps}, {"metrics": metrics}
    return [
        Event(0, What.ACKNOWLEDGED, request_id, body=json.dumps(asked)),
        Event(1, What.ANSWERED, request_id, detail="completed", body=json.dumps(body)),
    ]


RUN = priced("run", cost=1.30025, inference_time=1.201)
OTHER_RUN = priced("other", prompt="a dog", cost=1.5, inference_time=2.0)


def test_a_run_costs_its_time_and_a_cached_video_a_share_of_that() -> None:
    hit = priced("hit", cost=0.325063, inference_time=0.0, cached=True)  # half a millionth is one
    retimed = priced("retimed", fps=16, cost=0.325063, inference_time=0.1, cached=True)
    assert list(wrong_costs([*RUN, *OTHER_RUN, *hit, *retimed])) == []


def test_a_run_on_two_gpus_costs_both() -> None:
    pair = priced("pair", cost=1.6005, inference_time=1.201)
    assert list(wrong_costs(pair, gpus=(1, 2))) == []
    assert len([*wrong_costs(pair)]) == 1


@pytest.mark.parametrize(
    ("videos", "sentence"),
    [
        (priced("a", cost=1.300251, inference_time=1.201),
         "a: a run cost 1.300251, and the price is 1.300250"),
        (priced("a", cost=0.325062, inference_time=0.0, cached=True),
         "a: a cached video cost 0.325062, and the price is 0.325063"),
        (priced("a", cost=1.30025, inference_time=0.0, cached=True),
         "a: a cached video cost 1.30025, and the price is 0.325063"),
        (priced("a", cost=0, inference_time=0.0, cached=True),
         "a: a cached video cost 0, and the price is 0.325063"),
        (priced("a", prompt="a dog", cost=0.325063, inference_time=0.0, cached=True),
         "a: a cached video cost 0.325063, and the price is 0.375000"),
        (priced("a", prompt="a cow", cost=0.325063, inference_time=0.0, cached=True),
         "a: a cached video cost 0.325063, and the price is that of a run, and there was none"),
    ],
)  # fmt: skip
def test_a_wrong_cost_is_told(videos: list[Event], sentence: str) -> None:
    assert list(wrong_costs([*RUN, *OTHER_RUN, *videos])) == [sentence]
