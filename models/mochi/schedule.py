"""The noise levels that a request goes through: those of the stock pipeline, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

THRESHOLD_NOISE = 0.025
"""Where Genmo's schedule turns from linear to quadratic."""


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
