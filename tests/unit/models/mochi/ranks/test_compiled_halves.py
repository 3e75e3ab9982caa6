"""Compiled blocks in a group, which exchanges tokens in the middle of each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import register_backend
from torch.fx import GraphModule

from models.mochi.loading.compiling import compile_blocks
from models.mochi.network.ranks import Ranks
from tests.support.models.ranks import group_of
from tests.support.models.tiny_mochi import (
    embeddings,
    make_stock,
    noise,
    our_conditions,
    take_over,
)

FRAMES = (2, 5)

_graphs: list[GraphModule] = []


@register_backend(name="counting_halves")
def _count(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    _graphs.append(graph)
    return graph.forward


def compiled(ranks: Ranks, lengths: tuple[int, ...]) -> tuple[bool, int]:
    """Whether compiled blocks compute the same for all lengths, and the number of their graphs."""
    conditioner, plain = take_over(make_stock(4))
    _, core = take_over(make_stock(4))
    for each in (plain, core):
        each.join(ranks)
    compile_blocks(core.blocks, backend="counting_halves", in_halves=True)
    same = True
    for (number, length), frames in product(enumerate(lengths), FRAMES):
        both = our_conditions(conditioner, embeddings(length, lengths[number - 1]), 10)
        conditions = ranks.branches(both)
        velocities = core(noise(frames), conditions, 9)
        same &= all(map(torch.equal, velocities, plain(noise(frames), conditions, 9)))
    return same, len(_graphs)


@pytest.mark.parametrize(
    ("lengths", "graphs"),
    [((2, 20), 4), pytest.param((0, 1, 2, 20, 256), 12, marks=pytest.mark.slow)],
)
def test_few_graphs_serve_every_request_of_a_group(lengths: tuple[int, ...], graphs: int) -> None:
    with group_of(4) as group:
        assert group(compiled, lengths) == [(True, graphs)] * 4
