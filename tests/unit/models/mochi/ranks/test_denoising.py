"""Denoising by a group of cards, beside the same by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.mochi.denoise import Schedule, denoise
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.step_cache import StepCache
from tests.support.models.ranks import Group, group_of
from tests.support.models.tiny_mochi import (
    GUIDANCE,
    embeddings,
    error,
    make_scheduler,
    make_stock,
    noise,
    take_over,
)

STEPS = 10
LENGTHS = ((0, 1), (60, 256))
"""Tokens of the negative prompt and of the prompt."""
SHAPES = ((3, 6, 10), (2, 6, 14))
"""Latents of 45 and 42 tokens: no multiples of 2 and of 4."""


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with group_of(request.param) as started:
        yield started


def denoised(
    ranks: Ranks,
    lengths: tuple[int, int],
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    threshold: float = 0.0,
    *,
    streamed: int = 0,
) -> tuple[Tensor, int]:
    """The latents, and how many steps the step cache has skipped."""
    conditioner, core = take_over(make_stock(3, dtype), streamed=streamed)
    core.join(ranks)
    schedule = Schedule.of(make_scheduler(), STEPS)
    cache = StepCache(threshold, ranks.total)
    latents = denoise(
        core,
        noise(*shape, seed=ranks.rank),  # the noise of rank 0 counts
        conditioner(ranks.branches(embeddings(*lengths, dtype=dtype)), schedule.timesteps),
        schedule,
        guidance_scale=GUIDANCE,
        on_step=lambda _step, _steps: None,
        cache=cache if threshold else None,
        ranks=ranks,
    )
    return latents, cache.skipped


def all_equal(tensors: list[Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_group_denoises_as_one_card_does(
    group: Group, lengths: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    expected, _ = denoised(ALONE, lengths, shape)
    latents = [each for each, _ in group(denoised, lengths, shape)]
    assert all_equal(latents)
    assert error(latents[0], expected) < 1e-6


def test_streamed_blocks_take_part(group: Group) -> None:
    expected, _ = denoised(ALONE, (0, 60), SHAPES[0])
    latents = [each for each, _ in group(denoised, (0, 60), SHAPES[0], streamed=2)]
    assert all_equal(latents)
    assert error(latents[0], expected) < 1e-6


def test_in_bfloat16_the_group_rounds_as_one_card_does(group: Group) -> None:
    expected, _ = denoised(ALONE, (1, 60), SHAPES[0], torch.bfloat16)
    latents = [each for each, _ in group(denoised, (1, 60), SHAPES[0], torch.bfloat16)]
    assert all_equal(latents)
    assert error(latents[0], expected) < 1e-2


def test_the_step_cache_skips_the_same_steps_on_all_cards(group: Group) -> None:
    expected, skipped = denoised(ALONE, (0, 60), SHAPES[0], threshold=0.85)
    results = group(denoised, (0, 60), SHAPES[0], torch.float32, 0.85)
    assert 0 < skipped < STEPS - 1
    assert [each for _, each in results] == [skipped] * group.size
    assert error(results[0][0], expected) < 1e-6
