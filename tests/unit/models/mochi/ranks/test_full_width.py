"""Groups at the width of Mochi 1, and of all sizes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from models.mochi.network.modulation import Conditioner
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.transformer import Core
from models.mochi.parts import Dtypes
from models.mochi.synthetic.dummy import empty_dummy, fill
from tests.support.models.ranks import group_of
from tests.support.models.tiny_mochi import embeddings, error, noise, our_conditions, take_over

BLOCKS = 2
LENGTHS = ((0, 60), (1, 256))


@cache
def parts() -> tuple[Conditioner, Core]:
    """Made before a group is forked, whose processes so share the memory: 2 GiB of weights."""
    stock = empty_dummy(Dtypes(), BLOCKS).transformer
    fill(stock, torch.Generator().manual_seed(1))
    return take_over(stock.requires_grad_(False))


@pytest.fixture(autouse=True, scope="module")
def _parts() -> Iterator[None]:
    yield
    parts.cache_clear()


def velocities(ranks: Ranks, lengths: tuple[int, int]) -> list[Tensor]:
    conditioner, core = parts()
    core.join(ranks)
    prompts = embeddings(*lengths, width=4096)
    conditions = ranks.branches(our_conditions(conditioner, prompts, 10))
    return list(core(noise(3, 10, 14), conditions, 3))  # 105 tokens: a multiple of no group's


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS)
def test_groups_of_every_size_compute_what_one_card_does(lengths: tuple[int, int]) -> None:
    expected = torch.cat(velocities(ALONE, lengths))
    for size in (2, 4, 6, 8):
        with group_of(size) as group:
            results = group(velocities, lengths)
        both = torch.cat(results[0])
        assert all(torch.equal(torch.cat(each), both) for each in results)
        assert error(both, expected) < 1e-6
