"""A small VAE."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLMochi

from tests.support.models.tiny_vae import make_vae


@pytest.fixture(scope="module")
def single() -> AutoencoderKLMochi:
    return make_vae(torch.float32)
