from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule, retrieve_timesteps
from torch import Tensor

from models.mochi.denoise import Schedule
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


def test_a_scheduler_serves_one_request_after_another() -> None:
    scheduler = make_scheduler()
    before = Schedule.of(scheduler, 10)
    kept = before.timesteps.clone()
    for steps in (30, 75, 10):
        again, fresh = Schedule.of(scheduler, steps), Schedule.of(make_scheduler(), steps)
        assert torch.equal(again.timesteps, fresh.timesteps)
        assert again.deltas == fresh.deltas
    assert torch.equal(before.timesteps, kept)
