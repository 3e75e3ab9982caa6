"""The engine's transformer and loop beside diffusers' own, on the same random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.denoise import Schedule, denoise
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.text_encoder import TextEncoder
from models.mochi.network.transformer import HeadNorm, rms_norm
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    error,
    make_pipeline,
    make_scheduler,
    make_stock,
    make_text_encoder,
    noise,
    normal,
    our_conditions,
    our_loop,
    randomise,
    stock_loop,
    stock_velocities,
    take_over,
)

# Of stock's position tables, which switch autocast off.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

BF16, FLOAT32 = torch.bfloat16, torch.float32
SAME = 1e-5
"""Relative error of two float32 computations that differ in the order of their sums."""
LENGTHS = (0, 1, 20, 60, 256)
STEPS = 30


def our_velocities(
    stock: MochiTransformer3DModel, latents: Tensor, prompts: list[Tensor], timestep: Tensor
) -> list[Tensor]:
    conditioner, core = take_over(copy.deepcopy(stock))
    velocities: list[Tensor] = core(latents, conditioner(prompts, timestep[None]), 0)
    return velocities


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
        torch.testing.assert_close(HeadNorm(stock)(x), stock(x))


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


# All steps


def test_given_the_same_latents_every_step_of_a_request_is_stock_s() -> None:
    stock, prompts = make_stock(), embeddings(3, 20)
    run = stock_loop(stock, prompts, noise(), STEPS)
    conditioner, core = take_over(stock)
    conditions = our_conditions(conditioner, prompts, STEPS)
    assert len(run.seen) == STEPS
    for step, (latents, expected) in enumerate(zip(run.seen, run.velocities, strict=True)):
        velocities = core(latents, conditions, step)
        assert max(map(error, velocities, expected)) < SAME


@pytest.mark.parametrize(
    ("steps", "guidance_scale", "lengths"),
    [(30, 4.5, (3, 20)), (10, 10.0, (0, 256)), (11, 2.0, (60, 1))],
)
def test_latents_at_the_end_are_those_of_the_stock_pipeline(
    steps: int, guidance_scale: float, lengths: tuple[int, int]
) -> None:
    stock, prompts = make_stock(), embeddings(*lengths)
    run = stock_loop(stock, prompts, noise(), steps, guidance_scale)
    conditioner, core = take_over(stock)
    conditions = our_conditions(conditioner, prompts, steps)
    assert error(our_loop(core, conditions, noise(), guidance_scale), run.latents) < SAME


def test_a_guidance_of_one_is_the_prompt_alone() -> None:
    stock, prompts = make_stock(), embeddings(3, 20)
    run = stock_loop(stock, prompts, noise(), 10, guidance_scale=1)
    assert len(run.velocities[0]) == 1  # stock ran no branch for the negative prompt
    conditioner, core = take_over(stock)
    conditions = our_conditions(conditioner, prompts, 10)
    assert error(our_loop(core, conditions, noise(), 1), run.latents) < SAME


@pytest.mark.parametrize("negative_prompt", ["", "blurry"])
def test_from_words_to_latents_we_agree_with_the_stock_pipeline(negative_prompt: str) -> None:
    stock, text_encoder = make_stock(), make_text_encoder()
    pipeline = make_pipeline(stock, text_encoder)
    expected = pipeline(
        "A pond at dawn",
        negative_prompt=negative_prompt,
        latents=noise(),
        height=48,
        width=64,
        num_inference_steps=10,
        output_type="latent",
        return_dict=False,
    )[0]
    ours = TextEncoder(pipeline.tokenizer, text_encoder, lives_on=CPU, works_on=CPU)
    prompts = [ours.encode(text).embedding for text in (negative_prompt, "A pond at dawn")]
    conditioner, core = take_over(stock)
    assert error(our_loop(core, our_conditions(conditioner, prompts, 10), noise()), expected) < SAME


@dataclass
class Ends:
    """Latents after 30 steps from the same noise with the same bfloat16 weights.

    Attributes:
        exact: the stock pipeline, in float32.
        stock: the stock pipeline, in bfloat16.
        autocast: the stock pipeline as diffusers advise for quality: float32 but for the products.
        as_stock: ours, with the latents and time steps rounded as in `stock`.
        as_genmo: ours, with both in float32.
    """

    exact: Tensor
    stock: Tensor
    autocast: Tensor
    as_stock: Tensor
    as_genmo: Tensor

    @classmethod
    def of(cls, seed: int) -> Ends:
        stock = make_stock(3, BF16, seed)
        exact = copy.deepcopy(stock).float()
        prompts = embeddings(3, 20, seed=seed, dtype=BF16)
        in_float32 = [prompt.float() for prompt in prompts]
        latents = noise(seed=seed, dtype=BF16)
        exact_run = stock_loop(exact, in_float32, latents.float())
        stock_run = stock_loop(stock, prompts, latents)
        with torch.autocast("cpu", BF16, cache_enabled=False):
            autocast_run = stock_loop(exact, in_float32, latents.float())
        conditioner, core = take_over(stock)
        return cls(
            exact_run.latents,
            stock_run.latents,
            autocast_run.latents,
            our_loop(core, our_conditions(conditioner, prompts, timesteps=BF16), latents),
            our_loop(core, our_conditions(conditioner, in_float32), latents.float()),
        )


@pytest.fixture(scope="module")
def ends() -> list[Ends]:
    return [Ends.of(seed) for seed in range(4)]


def mean_error(
    ends: list[Ends], value: Callable[[Ends], Tensor], expected: Callable[[Ends], Tensor]
) -> float:
    return mean(error(value(each), expected(each)) for each in ends)


def test_with_latents_and_time_steps_rounded_we_end_where_the_bfloat16_pipeline_does(
    ends: list[Ends],
) -> None:
    apart = mean_error(ends, lambda it: it.as_stock, lambda it: it.stock)
    stocks = mean_error(ends, lambda it: it.stock, lambda it: it.exact)
    ours = mean_error(ends, lambda it: it.as_stock, lambda it: it.exact)
    assert {each.as_stock.dtype for each in ends} == {BF16}
    # It is off for the most part by the rounding that both do, and we by that much too.
    assert apart < 0.3 * stocks
    assert ours < 1.1 * stocks


def test_with_latents_and_time_steps_in_float32_we_are_as_exact_as_autocast(
    ends: list[Ends],
) -> None:
    ours = mean_error(ends, lambda it: it.as_genmo, lambda it: it.exact)
    autocasts = mean_error(ends, lambda it: it.autocast, lambda it: it.exact)
    stocks = mean_error(ends, lambda it: it.stock, lambda it: it.exact)
    assert {each.as_genmo.dtype for each in ends} == {FLOAT32}
    assert ours < 1.1 * autocasts
    assert ours < 0.5 * stocks


@pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=str)
def test_a_step_is_the_stock_scheduler_s_to_the_last_bit(dtype: torch.dtype) -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(3, 20), 10)
    scheduler, latents = make_scheduler(), noise(dtype=dtype)
    Schedule.of(scheduler, 10)
    for step, timestep in enumerate(scheduler.timesteps):
        without, prompt = core(latents, conditions, step)
        velocity = without + 4.5 * (prompt - without)
        latents = scheduler.step(velocity, timestep, latents.float()).prev_sample.to(dtype)
    assert torch.equal(our_loop(core, conditions, noise(dtype=dtype), 4.5), latents)


def test_each_step_is_reported_after_it_is_done_and_can_end_the_loop() -> None:
    conditioner, core = take_over(make_stock())
    runs, seen = [0], []
    core.register_forward_hook(lambda *_: runs.append(runs[-1] + 1))

    def on_step(step: int, steps: int) -> None:
        seen.append((step, steps, runs[-1]))
        if step == 3:
            raise KeyboardInterrupt

    away_from, towards = our_conditions(conditioner, embeddings(0, 1), 10)
    schedule = Schedule.of(make_scheduler(), 10)
    with pytest.raises(KeyboardInterrupt):
        denoise(core, noise(), (away_from, towards), schedule, guidance_scale=4, on_step=on_step)
    assert seen == [(1, 10, 1), (2, 10, 2), (3, 10, 3)]


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


def test_a_request_does_not_know_of_those_before() -> None:
    conditioner, core = take_over(make_stock())
    conditions = our_conditions(conditioner, embeddings(0, 20), 10)
    before = our_loop(core, conditions, noise())
    our_loop(core, our_conditions(conditioner, embeddings(60, 1), 11), noise(3, 4, 10, seed=1))
    assert torch.equal(our_loop(core, conditions, noise()), before)


def test_latents_keep_their_dtype_and_the_transformer_rounds_them_to_its_own() -> None:
    conditioner, core = take_over(make_stock(dtype=BF16))
    conditions = our_conditions(conditioner, embeddings(0, 20), 10)
    exact, rounded = noise(), noise().to(BF16)
    for ours, theirs in zip(core(exact, conditions, 3), core(rounded, conditions, 3), strict=True):
        assert torch.equal(ours, theirs)
    assert our_loop(core, conditions, rounded).dtype == BF16
    assert our_loop(core, conditions, exact).dtype == FLOAT32


# Modulation tables


@dataclass
class Modulation:
    """Of all steps and two prompts, stock's beside ours.

    Attributes:
        stock: its layers.
        inputs: what stock's norms are told, `(30, width)` for each prompt.
        texts: the prompts as stock's blocks read them.
        conditions: ours.
    """

    stock: MochiTransformer3DModel
    inputs: list[Tensor]
    texts: list[Tensor]
    conditions: list[Condition]


@pytest.fixture(params=[FLOAT32, BF16], ids=str)
def modulation(request: pytest.FixtureRequest) -> Modulation:
    dtype: torch.dtype = request.param
    stock, prompts = make_stock(dtype=dtype), embeddings(0, 20, dtype=dtype)
    timesteps = Schedule.of(make_scheduler(), STEPS).timesteps.to(dtype)
    inputs, texts = [], []
    for prompt in prompts:
        # Not padded, and all steps at once: sums are in the same order, and equal to the last bit.
        conditioning, text = stock.time_embed(
            timesteps,
            prompt[None],
            torch.ones(1, len(prompt), dtype=torch.bool),
            hidden_dtype=dtype,
        )
        inputs.append(conditioning)
        texts.append(text)
    conditioner, _ = take_over(copy.deepcopy(stock))
    return Modulation(stock, inputs, texts, conditioner(prompts, timesteps))


def assert_table_is_of(table: Tensor, norm: nn.Module, inputs: Tensor) -> None:
    """All four factors of each step, and what the norm makes with the first."""
    x = normal(STEPS, 3, table.shape[2], dtype=inputs.dtype)
    normed, gate, scale_mlp, gate_mlp = norm(x, inputs)
    assert torch.equal((rms_norm(x, 1e-6) * table[:, :1]).to(x.dtype), normed)
    scale = norm.get_submodule("linear")(functional.silu(inputs)).chunk(4, dim=1)[0]
    for row, expected in enumerate(
        (1 + scale.float(), gate.tanh().float(), 1 + scale_mlp.float(), gate_mlp.tanh().float())
    ):
        assert torch.equal(table[:, row], expected)


@pytest.mark.parametrize("prompt", [0, 1])
def test_tables_hold_what_stock_s_norms_compute_at_every_step(
    modulation: Modulation, prompt: int
) -> None:
    *blocks, last = modulation.stock.transformer_blocks
    inputs, tables = modulation.inputs[prompt], modulation.conditions[prompt].blocks
    assert len(tables) == len(blocks) + 1
    for block, (visual, text) in zip(blocks, tables[:-1], strict=True):
        assert visual.dtype == text.dtype == FLOAT32
        assert_table_is_of(visual, block.norm1, inputs)
        assert_table_is_of(text, block.norm1_context, inputs)
    visual, text = tables[-1]
    assert_table_is_of(visual, last.norm1, inputs)
    x = normal(STEPS, 3, text.shape[2], dtype=inputs.dtype)
    assert text.shape[1] == 1
    expected = last.norm1_context(x, inputs)
    assert torch.equal((rms_norm(x, 1e-6) * text).to(x.dtype), expected)


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_last_norm_and_the_text_are_stock_s_too(modulation: Modulation, prompt: int) -> None:
    condition, inputs = modulation.conditions[prompt], modulation.inputs[prompt]
    scale, shift = modulation.stock.norm_out.linear(functional.silu(inputs)).float().chunk(2, 1)
    assert torch.equal(condition.output, torch.stack((1 + scale, shift), dim=1))
    assert torch.equal(condition.text, modulation.texts[prompt])


def test_tables_are_the_same_where_big_layers_visit_the_device() -> None:
    prompts, timesteps = embeddings(0, 20), torch.linspace(0, 999, 10)
    resident, _ = take_over(make_stock())
    visiting = Conditioner(make_stock())
    visiting.place(CPU, big_layers_too=False)
    homes = [parameter.data_ptr() for parameter in visiting.parameters()]
    for ours, theirs in zip(
        visiting(prompts, timesteps), resident(prompts, timesteps), strict=True
    ):
        assert torch.equal(ours.output, theirs.output)
        for (visual, text), (their_visual, their_text) in zip(
            ours.blocks, theirs.blocks, strict=True
        ):
            assert torch.equal(visual, their_visual)
            assert torch.equal(text, their_text)
    assert [parameter.data_ptr() for parameter in visiting.parameters()] == homes


def test_what_a_core_gets_is_never_a_view(modulation: Modulation) -> None:
    # Compiled blocks would be compiled anew for each offset into a tensor.
    for condition in modulation.conditions:
        for tensor in (condition.text, *(table for pair in condition.blocks for table in pair)):
            assert tensor.storage_offset() == 0
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


# Position tables


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (1, 30, 53), (2, 3, 4), (28, 5, 3), (3, 1, 7), (4, 15, 26)], ids=str
)
@pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=str)
def test_position_tables_are_stock_s_to_the_last_bit(
    grid: tuple[int, int, int], dtype: torch.dtype
) -> None:
    stock = make_stock(2, dtype)
    expected = stock.rope(stock.pos_frequencies, *grid, device=CPU, dtype=FLOAT32)
    _, core = take_over(copy.deepcopy(stock))
    cos, sin = core.rope.of(*grid)
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])
    assert grid[1:] == (1, 1) or cos.std() > 0.1  # positions matter


def test_position_tables_are_kept_for_the_latest_shape() -> None:
    _, core = take_over(make_stock(2))
    first = core.rope.of(2, 3, 4)
    assert core.rope.of(2, 3, 4) is first
    core.rope.of(1, 3, 4)
    again = core.rope.of(2, 3, 4)
    assert again is not first
    core.rope.to(CPU)
    assert core.rope.of(2, 3, 4) is not again
    assert torch.equal(core.rope.of(2, 3, 4), first)
