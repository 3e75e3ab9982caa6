"""The denoising loop and its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from models.engine import OnStep
from models.mochi.checkpoint import LatentsKeeper
from models.mochi.network.modulation import Condition
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.step_cache import StepCache
from models.mochi.network.transformer import Core
from models.mochi.preview import Previewer
from models.request.catalogue import MOCHI, NoiseSchedule


def denoise(
    core: Core,
    latents: Tensor,
    conditions: Sequence[Condition],
    schedule: Schedule,
    *,
    guidance_scale: float,
    on_step: OnStep,
    cache: StepCache | None = None,
    keeper: LatentsKeeper | None = None,
    previewer: Previewer | None = None,
    ranks: Ranks = ALONE,
    stop_after: int | None = None,
) -> Tensor:
    """Turn noise into the latents of a video, by Euler steps along the guided velocity.

    Only a step whose latents are kept waits for the GPU. The driver queues about a thousand
    launches, so this loop, and `on_step` with it, runs about a step ahead of the GPU.

    Args:
        core: the transformer.
        latents: noise, `(1, channels, T, h, w)`. Each step rounds to its dtype: float32 as in
            Genmo's code, or bfloat16 as in diffusers when the text embeddings are.
        conditions: of the negative prompt and of the prompt, or this card's of the two.
        schedule: with as many steps as the conditions.
        guidance_scale: 1 ignores the negative prompt, more leads away from it.
        on_step: see `OnStep`.
        cache: see `Core.forward`. Not together with a keeper, which does not save its state.
        keeper: see `LatentsKeeper`. A step that `on_step` abandons is not kept.
        previewer: see `Previewer`.
        ranks: the cards that share the video.
        stop_after: of a draft, the steps to run, fewer than all. It returns where the rest of the
            way leads if the velocity stays the same.
    """
    last = stop_after or len(schedule.deltas)
    first, latents = ranks.from_first(*(keeper.resume(latents) if keeper else (0, latents)))
    for step in range(first, last):
        away_from, towards = core(latents, conditions, step, cache)
        velocity = away_from + guidance_scale * (towards - away_from)
        latents = (latents.float() + schedule.deltas[step] * velocity).to(latents.dtype)
        left = sum(schedule.deltas[step + 1 :])
        on_step(step + 1, last)
        if previewer:
            previewer.look(step + 1, latents, velocity, left)
        if keeper:
            keeper.keep(step + 1, latents)
    if stop_after:
        latents = (latents.float() + left * velocity).to(latents.dtype)
    return latents


@dataclass(frozen=True)
class Schedule:
    """The steps of one request.

    Attributes:
        timesteps: float32 `(steps,)`, input of the transformer: 0 is noise, 1000 the video.
        deltas: how far along the velocity each step goes; their sum is 1.
    """

    timesteps: Tensor
    deltas: tuple[float, ...]

    @classmethod
    def of(
        cls,
        scheduler: FlowMatchEulerDiscreteScheduler,
        steps: int,
        noise: NoiseSchedule = MOCHI.schedule,
    ) -> Schedule:
        """The linear-quadratic schedule of a model, through the scheduler of the weights."""
        linear_steps = noise.linear_steps(steps)
        sigmas = np.array(linear_quadratic_schedule(steps, noise.threshold, linear_steps))
        scheduler.set_timesteps(sigmas=sigmas, device="cpu")
        return cls(scheduler.timesteps, tuple(scheduler.sigmas.diff().tolist()))
