"""One step of the transformer beside diffusers' own, on the same random weights."""

from __future__ import annotations

import copy
from statistics import mean

import pytest
import torch
from diffusers import MochiTransformer3DModel

from models.mochi.denoise import Schedule
from models.mochi.network.attention import pairs_to_halves
from models.mochi.network.transformer import HeadNorm
from tests.support.models.parity import BF16, FLOAT32, LENGTHS, SAME, STEPS, our_velocities
from tests.support.models.tiny_mochi import (
    embeddings,
    error,
    make_scheduler,
    make_stock,
    noise,
    normal,
    randomise,
    stock_velocities,
    take_over,
)

# Of stock's position tables, which switch autocast off.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


# One step in float32


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 2, 2), (2, 6, 8), (3, 10, 4)], ids=str)
def test_velocities_are_those_of_stock_whatever_the_length_of_the_text(
    blocks: int, size: tuple[int, int, int]
) -> None:
    stock, latents, prompts = make_stock(blocks), noise(*size), embeddings(*LENGTHS)
    timestep = torch.tensor(37.5)
    expected = stock_velocities(stock, latents, prompts, timestep)
    velocities = our_velocities(stock, latents, prompts, timestep)
    for ours, theirs in zip(velocities, expected, strict=True):
        assert ours.dtype == FLOAT32
        assert error(ours, theirs) < SAME


def test_velocities_are_those_of_stock_where_norms_are_held_up_by_their_epsilon() -> None:
    # Nothing before a norm is much larger than the root of its epsilon.
    stock = make_stock(4)
    for name, parameter in stock.named_parameters():
        is_scale = ".norm_" in name
        if name.startswith(("transformer_blocks", "patch_embed", "time_embed.caption")):
            parameter.data *= 1 if is_scale else 1e-3
    prompts, timestep = embeddings(0, 20), torch.tensor(37.5)
    expected = stock_velocities(stock, noise(), prompts, timestep)
    velocities = our_velocities(stock, noise(), prompts, timestep)
    assert max(map(error, velocities, expected)) < SAME


def test_a_head_s_norm_is_stock_s() -> None:
    stock = make_stock(2).transformer_blocks[0].attn1.norm_q
    for size in (1e-3, 1.0):
        x = size * normal(1, 5, 4, 16)
        halves = pairs_to_halves(x.movedim(-1, 0), 16).movedim(0, -1)
        expected = pairs_to_halves(stock(x).movedim(-1, 0), 16).movedim(0, -1)
        torch.testing.assert_close(HeadNorm(stock)(halves), expected)


def test_velocities_are_those_of_stock_at_full_width() -> None:
    with torch.device("meta"):
        stock = MochiTransformer3DModel(num_layers=2)
    stock.to_empty(device="cpu")
    randomise(stock)
    prompts, timestep, latents = embeddings(0, 5, width=4096), torch.tensor(37.5), noise(1, 8, 8)
    expected = stock_velocities(stock, latents, prompts, timestep, length=8)
    conditioner, core = take_over(stock)  # without a copy: it has 1.9 GB
    velocities = core(latents, conditioner(prompts, timestep[None]), 0)
    assert max(map(error, velocities, expected)) < SAME


# One step in bfloat16


def test_in_bfloat16_we_are_as_near_to_float32_as_stock() -> None:
    ours: list[float] = []
    theirs: list[float] = []
    for seed in range(3):
        stock = make_stock(8, BF16, seed)
        exact = copy.deepcopy(stock).float()
        conditioner, core = take_over(copy.deepcopy(stock))
        prompts = embeddings(0, 20, seed=seed, dtype=BF16)
        timesteps = Schedule.of(make_scheduler(), STEPS).timesteps.to(BF16)
        conditions = conditioner(prompts, timesteps)
        for step in (0, 12, 24):
            latents = noise(seed=10 * seed + step, dtype=BF16)
            expected = stock_velocities(
                exact, latents.float(), [prompt.float() for prompt in prompts], timesteps[step]
            )
            theirs += map(
                error, stock_velocities(stock, latents, prompts, timesteps[step]), expected
            )
            ours += map(error, core(latents, conditions, step), expected)
    assert mean(ours) < 1.1 * mean(theirs)
    assert mean(theirs) < 0.02


# What must not matter


def test_what_stock_has_in_its_padding_changes_nothing() -> None:
    stock, prompts, timestep = make_stock(), embeddings(*LENGTHS), torch.tensor(500.0)
    one, other = (stock_velocities(stock, noise(), prompts, timestep, seed=seed) for seed in (1, 2))
    assert all(map(torch.equal, one, other))
    assert max(map(error, our_velocities(stock, noise(), prompts, timestep), one)) < SAME


@pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=str)
def test_a_branch_does_not_know_of_the_others(dtype: torch.dtype) -> None:
    conditioner, core = take_over(make_stock(dtype=dtype))
    prompts, timestep = embeddings(*LENGTHS, dtype=dtype), torch.tensor([500.0])
    together = core(noise(), conditioner(prompts, timestep), 0)
    backwards = core(noise(), conditioner(prompts[::-1], timestep), 0)[::-1]
    alone = [core(noise(), conditioner([prompt], timestep), 0)[0] for prompt in prompts]
    assert all(map(torch.equal, together, alone))
    assert all(map(torch.equal, together, backwards))
    assert len({float(velocity.sum()) for velocity in together}) == len(LENGTHS)
