from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule, retrieve_timesteps
from torch import Tensor

from models.mochi.denoise import Schedule
from models.request.catalogue import FAST_MOCHI
from tests.support.models.tiny_mochi import (
    embeddings,
    make_pipeline,
    make_scheduler,
    make_stock,
    noise,
    pad,
)

ALL_STEPS = range(10, 76)
"""That a request may ask for."""


@pytest.mark.parametrize("steps", ALL_STEPS)
def test_levels_are_those_of_the_stock_pipeline_to_the_last_bit(steps: int) -> None:
    scheduler = make_scheduler()
    sigmas = np.array(linear_quadratic_schedule(steps, 0.025))
    timesteps, count = retrieve_timesteps(scheduler, steps, "cpu", None, sigmas)
    schedule = Schedule.of(make_scheduler(), steps)
    assert count == len(schedule.deltas) == steps
    assert schedule.timesteps.dtype == torch.float32
    assert torch.equal(schedule.timesteps, timesteps)
    assert torch.equal(torch.tensor(schedule.deltas), scheduler.sigmas.diff())


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
@pytest.mark.parametrize("steps", [10, 30, 75])
def test_the_stock_pipeline_goes_through_the_same_levels(steps: int) -> None:
    pipeline = make_pipeline(make_stock(1))
    seen: list[Tensor] = []

    def watch(_: object, step: int, timestep: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        assert pipeline.scheduler.step_index == step + 1
        seen.append(timestep)
        return inputs

    prompts, masks = pad(embeddings(1, 2), length=4)
    pipeline(
        negative_prompt_embeds=prompts[:1],
        negative_prompt_attention_mask=masks[:1],
        prompt_embeds=prompts[1:],
        prompt_attention_mask=masks[1:],
        latents=noise(1, 2, 2),
        height=16,
        width=16,
        num_inference_steps=steps,
        output_type="latent",
        callback_on_step_end=watch,
    )
    schedule = Schedule.of(make_scheduler(), steps)
    assert torch.equal(schedule.timesteps, torch.stack(seen))
    assert torch.equal(torch.tensor(schedule.deltas), pipeline.scheduler.sigmas.diff())


@pytest.mark.parametrize("steps", ALL_STEPS)
def test_steps_lead_from_noise_to_the_video(steps: int) -> None:
    schedule = Schedule.of(make_scheduler(), steps)
    assert schedule.timesteps[0] == 0
    assert all(schedule.timesteps.diff() > 0)
    assert schedule.timesteps[-1] < 1000
    assert all(delta > 0 for delta in schedule.deltas)
    assert sum(schedule.deltas) == pytest.approx(1, abs=1e-6)


FAST_STEPS = range(4, 17)
"""That a request for `mochi-1-fast` may ask for."""


@pytest.mark.parametrize("steps", FAST_STEPS)
def test_steps_of_the_fast_model_lead_from_noise_to_the_video(steps: int) -> None:
    schedule = Schedule.of(make_scheduler(), steps, FAST_MOCHI.schedule)
    assert len(schedule.deltas) == steps
    assert schedule.timesteps[0] == 0
    assert all(delta > 0 for delta in schedule.deltas)
    assert sum(schedule.deltas) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("grid", [50, 100])
def test_the_fast_model_takes_the_steps_that_it_is_distilled_for(grid: int) -> None:
    """FastVideo picks them, rounded down, from a grid of a schedule of a thousand steps."""
    thousand = linear_quadratic_schedule(1000, 0.1, 750)
    picked = [thousand[step * grid // 8 * (1000 // grid)] for step in range(8)]
    timesteps = Schedule.of(make_scheduler(), 8, FAST_MOCHI.schedule).timesteps / 1000
    # The last steps are long: there a hundredth of the way is six hundredths of the noise.
    assert timesteps.tolist() == pytest.approx([1 - sigma for sigma in picked], abs=0.06)
    assert timesteps[:7].tolist() == pytest.approx([1 - each for each in picked[:7]], abs=0.003)


def test_the_fast_model_removes_a_tenth_of_the_noise_in_six_of_its_eight_steps() -> None:
    deltas = Schedule.of(make_scheduler(), 8, FAST_MOCHI.schedule).deltas
    assert sum(deltas[:6]) == pytest.approx(0.1, abs=1e-6)
    assert deltas[:6] == pytest.approx([0.1 / 6] * 6, abs=1e-6)


def test_a_scheduler_serves_one_request_after_another() -> None:
    scheduler = make_scheduler()
    before = Schedule.of(scheduler, 10)
    kept = before.timesteps.clone()
    for steps in (30, 75, 10):
        again, fresh = Schedule.of(scheduler, steps), Schedule.of(make_scheduler(), steps)
        assert torch.equal(again.timesteps, fresh.timesteps)
        assert again.deltas == fresh.deltas
    assert torch.equal(before.timesteps, kept)
