from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.mochi.memory.streaming import StreamedBlocks, pin, visit
from models.mochi.network.step_cache import StepCache
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    make_stock,
    noise,
    our_conditions,
    our_loop,
    take_over,
)


def make_blocks(count: int) -> list[nn.Module]:
    """Alike but for their weights."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
        for _ in range(count)
    ]


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.clone() for parameter in module.parameters()]


def assert_equal(some: list[Tensor], others: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def assert_draws_in_order(drawn: Iterator[nn.Module], originals: list[nn.Module]) -> None:
    x = torch.randn(3, 4)
    for block, original in zip(drawn, originals, strict=True):
        assert_equal(weights(block), weights(original))
        assert torch.equal(block(x), original(x))


# Blocks that visit in turn


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_every_block_comes_once_in_order_with_its_own_weights(count: int) -> None:
    blocks = make_blocks(count)
    originals = copy.deepcopy(blocks)
    streamed = StreamedBlocks(blocks, CPU)
    for _ in range(3):
        assert_draws_in_order(iter(streamed), originals)


def test_buffers_are_copied_only_while_they_are_needed() -> None:
    blocks = make_blocks(3)
    for number, block in enumerate(blocks):
        block.register_buffer("extra", torch.full((2,), float(number)))
    streamed = StreamedBlocks(blocks, CPU)

    def seen() -> list[float]:
        return [float(block.get_buffer("extra")[0]) for block in streamed]

    assert seen() == [0, 1, 0]  # the copies' own
    streamed.with_buffers = True
    assert seen() == [0, 1, 2]


def test_two_copies_do_all_the_work() -> None:
    streamed = StreamedBlocks(make_blocks(5), CPU)
    assert len(streamed.copies) == 2
    assert [streamed.copies.index(block) for block in streamed] == [0, 1, 0, 1, 0]


def test_weights_at_home_are_never_written_to() -> None:
    blocks = make_blocks(5)
    originals = copy.deepcopy(blocks)
    homes = [parameter.data_ptr() for block in blocks for parameter in block.parameters()]
    for block in StreamedBlocks(blocks, CPU):
        for parameter in block.parameters():
            parameter.data.zero_()  # it is a copy
    for block, original in zip(blocks, originals, strict=True):
        assert_equal(weights(block), weights(original))
    assert homes == [parameter.data_ptr() for block in blocks for parameter in block.parameters()]


@pytest.mark.parametrize("drawn", [0, 1, 2, 3, 4])
def test_after_an_iteration_that_was_left_the_next_is_right(drawn: int) -> None:
    blocks = make_blocks(4)
    originals = copy.deepcopy(blocks)
    streamed = StreamedBlocks(blocks, CPU)
    left = iter(streamed)
    for _ in range(drawn):
        next(left)
    assert_draws_in_order(iter(streamed), originals)  # whether or not it is closed before
    del left
    assert_draws_in_order(iter(streamed), originals)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("blocks", "count"), [(3, 2), (4, 3), (5, 3), (4, 47)])
def test_a_core_of_streamed_blocks_computes_what_a_resident_one_does(
    blocks: int, count: int, dtype: torch.dtype
) -> None:
    conditioner, resident = take_over(make_stock(blocks, dtype))
    _, streamed = take_over(make_stock(blocks, dtype), streamed=count)
    for lengths in ((0, 20), (60, 1)):
        conditions = our_conditions(conditioner, embeddings(*lengths, dtype=dtype), 10)
        expected = our_loop(resident, conditions, noise())
        assert torch.equal(our_loop(streamed, conditions, noise()), expected)


def test_streamed_blocks_may_be_skipped() -> None:
    conditioner, resident = take_over(make_stock(5))
    _, streamed = take_over(make_stock(5), streamed=4)
    conditions = our_conditions(conditioner, embeddings(0, 20), 10)
    caches = StepCache(0.85), StepCache(0.85)
    expected = our_loop(resident, conditions, noise(), cache=caches[0])
    assert torch.equal(our_loop(streamed, conditions, noise(), cache=caches[1]), expected)
    assert 0 < caches[1].skipped == caches[0].skipped < 9
    exact = our_loop(resident, conditions, noise())
    assert torch.equal(our_loop(streamed, conditions, noise()), exact)


@pytest.mark.parametrize(("count", "kept"), [(5, 3), (4, 4), (3, 5)])
def test_a_streamed_core_keeps_two_slots_and_the_other_blocks_on_the_device(
    count: int, kept: int
) -> None:
    _, core = take_over(make_stock(6), streamed=count)
    resident, whole = (
        sum(parameter.numel() for parameter in each.parameters())
        for each in (core, take_over(make_stock(6))[1])
    )
    assert len(set(core.blocks)) == len(core.blocks) == kept
    assert resident < (kept + 0.6) / 6 * whole


# One module that visits

ELSEWHERE = torch.device("cpu", 0)
"""Stands for a card: the weights are at home on the CPU without a number."""


def test_a_visitor_that_finds_no_room_is_at_home_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_blocks(1)[0]
    homes = [parameter.data_ptr() for parameter in module.parameters()]
    moves = 0
    move = torch.Tensor.to

    def full(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal moves
        moves += 1
        if moves > 2:
            raise torch.OutOfMemoryError
        return move(self, *args, **options).clone()

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), visit(module, ELSEWHERE):
        pytest.fail("there was room")
    assert [parameter.data_ptr() for parameter in module.parameters()] == homes


def test_a_visitor_s_home_is_as_it_was_afterwards() -> None:
    module = make_blocks(1)[0]
    before = weights(module)
    homes = [parameter.data_ptr() for parameter in module.parameters()]
    with visit(module, ELSEWHERE):
        for parameter in module.parameters():
            parameter.data = torch.zeros_like(parameter)  # as if on another device
    assert_equal(weights(module), before)
    assert homes == [parameter.data_ptr() for parameter in module.parameters()]


def test_a_visitor_goes_home_also_when_its_work_fails() -> None:
    module = make_blocks(1)[0]
    homes = [parameter.data_ptr() for parameter in module.parameters()]

    def fail() -> None:
        with visit(module, ELSEWHERE):
            for parameter in module.parameters():
                parameter.data = torch.zeros_like(parameter)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert homes == [parameter.data_ptr() for parameter in module.parameters()]


def test_weights_that_are_shared_visit_once_and_stay_shared() -> None:
    one = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = one.weight
    module = nn.Sequential(one, other)
    with visit(module, ELSEWHERE):
        assert one.weight is other.weight
    assert one.weight is other.weight


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_nothing_is_pinned() -> None:
    module = make_blocks(1)[0]
    homes = [parameter.data_ptr() for parameter in module.parameters()]
    pin(module)
    assert homes == [parameter.data_ptr() for parameter in module.parameters()]
