"""Random values for the parameters of a model without weights."""

from __future__ import annotations

import torch
from torch import Size, Tensor


def random_values(name: str, shape: Size, generator: torch.Generator) -> Tensor:
    """Random values for one parameter, even where a new model has zeros or ones.

    With diffusers' initial `pos_frequencies` of zeros, for example, positions would make no
    difference. Zeros also compute faster than real weights.

    Args:
        name: of the parameter; a vector `weight` is the scale of a norm, with values around 1.
        shape: of the parameter.
        generator: on the device of the values.

    Returns:
        float32 of `shape`, normally distributed and scaled so that layers keep the magnitude of
        their inputs.
    """
    is_vector = len(shape) == 1
    std = 0.1 if is_vector else float(Size(shape[1:]).numel()) ** -0.5
    values = torch.empty(shape, device=generator.device).normal_(std=std, generator=generator)
    return values + 1 if is_vector and name.endswith("weight") else values
