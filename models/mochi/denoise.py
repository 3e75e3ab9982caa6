"""The denoising loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from models.engine import OnStep
from models.mochi.checkpoint import LatentsKeeper
from models.mochi.network.modulation import Condition
from models.mochi.network.step_cache import StepCache
from models.mochi.network.transformer import Core
from models.mochi.preview import Previewer

THRESHOLD_NOISE = 0.025
"""Where Genmo's schedule turns from linear to quadratic."""


def denoise(
    core: Core,
    latents: Tensor,
    conditions: tuple[Condition, Condition],
    schedule: Schedule,
    *,
    guidance_scale: float,
    on_step: OnStep,
    cache: StepCache | None = None,
    keeper: LatentsKeeper | None = None,
    previewer: Previewer | None = None,
) -> Tensor:
    """Noise to latents of a video, by Euler steps along the guided velocity.

    Nothing in here waits for a GPU. Its driver holds about a thousand launches, so this process is
    ahead of it by a step or so, and `on_step` with it. Only a step whose latents are kept waits.

    Args:
        core: the transformer.
        latents: noise, `(1, channels, T, h, w)`. Each step rounds to its dtype: float32, as Genmo
            does it, or bfloat16, as diffusers does it when the text embeddings are.
        conditions: of the negative prompt and of the prompt.
        schedule: with as many steps as the conditions.
        guidance_scale: 1 ignores the negative prompt, more leads away from it.
        on_step: see `OnStep`.
        cache: see `Core.forward`. It knows the steps before, which a keeper does not: never both.
        keeper: see `LatentsKeeper`. A step that `on_step` abandons is not kept.
        previewer: see `Previewer`.
    """
    steps = len(schedule.deltas)
    first, latents = keeper.resume(latents) if keeper else (0, latents)
    for step in range(first, steps):
        away_from, towards = core(latents, conditions, step, cache)
        velocity = away_from + guidance_scale * (towards - away_from)
        latents = (latents.float() + schedule.deltas[step] * velocity).to(latents.dtype)
        on_step(step + 1, steps)
        if previewer:
            previewer.look(step + 1, latents, velocity, sum(schedule.deltas[step + 1 :]))
        if keeper:
            keeper.keep(step + 1, latents)
    return latents


@dataclass(frozen=True)
class Schedule:
    """Of one request.

    Attributes:
        timesteps: float32 `(steps,)`, what the transformer is told: 0 is noise, 1000 the video.
        deltas: how far along the velocity each step goes. They sum up to 1.
    """

    timesteps: Tensor
    deltas: tuple[float, ...]

    @classmethod
    def of(cls, scheduler: FlowMatchEulerDiscreteScheduler, steps: int) -> Schedule:
        """Genmo's linear-quadratic schedule, through the scheduler that came with the weights."""
        sigmas = np.array(linear_quadratic_schedule(steps, THRESHOLD_NOISE))
        scheduler.set_timesteps(sigmas=sigmas, device="cpu")
        return cls(scheduler.timesteps, tuple(scheduler.sigmas.diff().tolist()))
