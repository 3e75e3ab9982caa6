"""Random weights that are good for something: no parameter is left without effect."""

from __future__ import annotations

import torch
from torch import Size, Tensor


def random_values(name: str, shape: Size, generator: torch.Generator) -> Tensor:
    """Values for one parameter, those that a new model starts with 0 or 1 too.

    Otherwise some inputs would not matter: with the `pos_frequencies` of zeros that diffusers
    starts with, say, positions make no difference. Zeros also compute faster than real weights.

    Args:
        name: of the parameter; a vector `weight` is a norm's scale, and comes out around 1.
        shape: of the parameter.
        generator: decides the device, too.

    Returns:
        float32 of `shape`: normally distributed, scaled so that layers keep the size of what
        passes through them.
    """
    is_vector = len(shape) == 1
    std = 0.1 if is_vector else float(Size(shape[1:]).numel()) ** -0.5
    values = torch.empty(shape, device=generator.device).normal_(std=std, generator=generator)
    return values + 1 if is_vector and name.endswith("weight") else values
