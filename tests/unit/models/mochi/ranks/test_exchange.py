"""How much the cards of a group exchange in a step, beside the arithmetic of the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from torch import Tensor

from models.mochi.network.ranks import Ranks
from tests.bench.engine_counts.groups import FUSIBLE_BYTES, Shape, rows, sent
from tests.support.models.ranks import group_of
from tests.support.models.tiny_mochi import (
    embeddings,
    make_stock,
    noise,
    our_conditions,
    take_over,
)

PERFORMANCE = Path(__file__).parents[5] / "docs" / "operate" / "performance.md"
SHAPE = Shape(tokens=45, text=60, width=64, blocks=3, item_bytes=4)


def counted(ranks: Ranks) -> int:
    """Bytes that this process gives to others in a step."""
    conditioner, core = take_over(make_stock(SHAPE.blocks))
    core.join(ranks)
    conditions = ranks.branches(our_conditions(conditioner, embeddings(60, 60), 10))
    total = 0
    exchange, gather = dist.all_to_all_single, dist.all_gather

    def count_exchange(
        received: Tensor, given: Tensor, gets: list[int], gives: list[int], group: Any
    ) -> None:
        nonlocal total
        rows = len(given) - gives[dist.get_rank(group)]
        total += rows * given[0].nbytes
        exchange(received, given, gets, gives, group=group)

    def count_gather(received: list[Tensor], given: Tensor) -> None:
        nonlocal total
        total += given.nbytes * (len(received) - 1)
        gather(received, given)

    with (
        mock.patch.object(dist, "all_to_all_single", count_exchange),
        mock.patch.object(dist, "all_gather", count_gather),
    ):
        core(noise(3, 6, 10), conditions, 3)
    return total


def communicators(_: Ranks) -> int:
    return len(dist.distributed_c10d._world.pg_map)


@pytest.mark.parametrize(("cards", "count"), [(2, 1), (4, 2)])
def test_a_card_alone_in_its_branch_has_no_communicator_for_it(cards: int, count: int) -> None:
    with group_of(cards) as group:
        assert group(communicators) == [count] * cards


@pytest.mark.parametrize("cards", [2, 4])
def test_a_step_exchanges_as_many_bytes_as_the_documents_reckon(cards: int) -> None:
    with group_of(cards) as group:
        results = group(counted)
    assert results == [sent(SHAPE, cards, rank % (cards // 2)) for rank in range(cards)]


def test_the_documents_have_the_table_that_the_arithmetic_gives() -> None:
    text = PERFORMANCE.read_text()
    assert "\n".join(rows()) in text
    assert f"620 TFLOP/s, {FUSIBLE_BYTES / 1e9:.0f} GB a step" in text
    assert f"GB moved that fusing can save | 1,718 | 1,605 | {FUSIBLE_BYTES / 1e9:.0f} |" in text


def test_two_branches_cost_one_small_exchange_a_step() -> None:
    assert sent(Shape(tokens=14_310), 2) == pytest.approx(2.75e6, rel=0.01)
