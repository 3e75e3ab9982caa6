"""What the comparisons with diffusers' transformer share."""

from __future__ import annotations

import copy

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor

from tests.support.models.tiny_mochi import take_over

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
