"""Small VAEs of random numbers, and the engine's decoder of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor

from models.mochi.network.vae import Decoder
from models.mochi.synthetic.values import random_values

CONTRAST = 0.3
"""Keeps the pictures mostly between black and white, and far from grey."""


def make_vae(dtype: torch.dtype, **config: Any) -> AutoencoderKLMochi:
    """A small one, each of whose parameters matters."""
    small = AutoencoderKLMochi(
        **{
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            **config,
        }
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in small.named_parameters():
        parameter.data = random_values(name, parameter.shape, generator)
    small.decoder.proj_out.weight.data *= CONTRAST
    return small.requires_grad_(False).type(dtype)


def make_decoder(stock: AutoencoderKLMochi, chunk: int) -> Decoder:
    return Decoder(copy.deepcopy(stock), chunk=chunk)


def make_latents(length: int, height: int = 2, width: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 12, length, height, width, generator=generator)


def joined(chunks: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(chunks))
