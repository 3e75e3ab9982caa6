from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.mochi.network.step_cache import StepCache
from models.mochi.network.transformer import Core
from tests.support.models.tiny_mochi import (
    embeddings,
    make_stock,
    noise,
    normal,
    our_conditions,
    our_loop,
    take_over,
)

STEPS = 10
NEARLY_NOTHING, ALL = 1e-9, 1e9


def watch(core: Core, index: int) -> list[Tensor]:
    """The visual tokens after a block, each time it runs from now on."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, outputs: tuple[Tensor, Tensor]) -> None:
        seen.append(outputs[0])

    core.blocks[index].register_forward_hook(keep)
    return seen


# In the loop


def test_a_threshold_near_zero_changes_nothing() -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(0, 20), STEPS)
    cache = StepCache(NEARLY_NOTHING)
    exact = our_loop(core, conditions, noise())
    assert torch.equal(our_loop(core, conditions, noise(), cache=cache), exact)
    assert cache.skipped == 0


def test_a_huge_threshold_skips_all_steps_but_the_first() -> None:
    conditioner, core = take_over(make_stock())
    first, second, last = (watch(core, index) for index in (0, 1, 2))
    cache = StepCache(ALL)
    our_loop(core, our_conditions(conditioner, embeddings(0, 20), STEPS), noise(), cache=cache)
    assert cache.skipped == STEPS - 1
    assert [len(seen) for seen in (first, second, last)] == [2 * STEPS, 2, 2]


def test_the_higher_the_threshold_the_more_is_skipped() -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(0, 20), STEPS)
    exact = our_loop(core, conditions, noise())
    skipped = []
    for threshold in (0.65, 0.85, 1.0):
        cache = StepCache(threshold)
        assert not torch.equal(our_loop(core, conditions, noise(), cache=cache), exact)
        skipped.append(cache.skipped)
    assert 0 < skipped[0] < skipped[1] < skipped[2] < STEPS - 1


def test_a_skipped_step_is_the_first_block_and_what_the_others_did_before() -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(0, 20), STEPS)
    first, last = watch(core, 0), watch(core, 2)
    cache = StepCache(ALL)
    core(noise(), conditions, 0, cache)
    velocities = core(noise(seed=1), conditions, 1, cache)
    assert cache.skipped == 1
    for branch, condition in enumerate(conditions):
        guessed = first[2 + branch] + (last[branch] - first[branch])
        expected = core._velocity(core._patches(guessed[0], condition.output[1]), (2, 3, 4))
        assert torch.equal(velocities[branch], expected)


def test_a_new_request_starts_with_all_blocks() -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(0, 20), STEPS)
    before = our_loop(core, conditions, noise(), cache=StepCache(ALL))
    others = our_conditions(conditioner, embeddings(60, 1, seed=3), STEPS)
    our_loop(core, others, noise(seed=1), cache=StepCache(ALL))
    assert torch.equal(our_loop(core, conditions, noise(), cache=StepCache(ALL)), before)


# By itself


def entered(branches: int = 2) -> list[Tensor]:
    return [normal(1, 6, 8, seed=branch) for branch in range(branches)]


def changed(*factors: float) -> list[Tensor]:
    """After a first block whose contribution is so many times its first one, which is 1."""
    return [tokens + factor for tokens, factor in zip(entered(), factors, strict=True)]


def started(threshold: float) -> StepCache:
    """A cache that has seen a step of all blocks, whose others added 10 and 20."""
    cache = StepCache(threshold)
    assert not cache.guess(entered(), changed(1, 1))
    cache.keep([tokens + more for tokens, more in zip(changed(1, 1), (10, 20), strict=True)])
    return cache


def test_nothing_is_guessed_before_all_blocks_have_run() -> None:
    cache = StepCache(ALL)
    assert cache.guess(entered(), changed(1, 1)) == []
    assert cache.guess(entered(), changed(1, 1)) == []


@pytest.mark.parametrize(
    ("factors", "skips"),
    [
        ((1.19, 1.19), True),
        ((1.21, 1.21), False),
        ((0.81, 1.19), True),  # changes do not cancel out
        ((0.79, 1.21), False),
        ((1.0, 1.39), True),  # branches are decided together, by their mean
        ((1.41, 1.0), False),
    ],
)
def test_the_mean_change_of_all_branches_decides(
    factors: tuple[float, float], *, skips: bool
) -> None:
    cache = started(0.2)
    guessed = cache.guess(entered(), changed(*factors))
    assert bool(guessed) == skips
    assert cache.skipped == int(skips)
    for result, after, rest in zip(guessed, changed(*factors), (10, 20), strict=False):
        torch.testing.assert_close(result, after + rest)


def test_changes_count_from_the_last_step_of_all_blocks_so_that_they_add_up() -> None:
    cache = started(0.25)
    assert [bool(cache.guess(entered(), changed(it, it))) for it in (1.1, 1.2, 1.3)] == [
        *(True, True),
        False,
    ]
    cache.keep([tokens + 7 for tokens in changed(1.3, 1.3)])
    guessed = cache.guess(entered(), changed(1.4, 1.4))
    for result, after in zip(guessed, changed(1.4, 1.4), strict=True):
        torch.testing.assert_close(result, after + 7)


def test_where_the_first_block_does_nothing_all_run() -> None:
    cache = StepCache(ALL)
    for _ in range(2):
        assert not cache.guess(entered(), entered())
        cache.keep(entered())
