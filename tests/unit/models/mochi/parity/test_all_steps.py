"""All steps of the loop beside diffusers' pipeline, on the same random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import pytest
import torch
from torch import Tensor

from models.mochi.denoise import Schedule, denoise
from models.mochi.network.text_encoder import TextEncoder
from tests.support.models.parity import BF16, FLOAT32, SAME, STEPS
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    error,
    make_pipeline,
    make_scheduler,
    make_stock,
    make_text_encoder,
    noise,
    our_conditions,
    our_loop,
    stock_loop,
    take_over,
)

# Of stock's position tables, which switch autocast off.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


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
