"""Dummy weights: random numbers of full size, to measure speed and memory. `--weights dummy`.

All shapes are those of genmo/mochi-1-preview. Nothing is downloaded, and the pictures are noise.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from models.mochi.parts import KEPT_IN_FLOAT32, Dtypes, Parts
from models.mochi.synthetic.mock import character_tokenizer
from models.mochi.synthetic.values import random_values

DUMMY = "dummy"
"""The value of MOCHI_WEIGHTS that asks for these weights."""
SEED = 1
CPU = torch.device("cpu")


def make_dummy(
    dtypes: Dtypes, device: torch.device, home: torch.device = CPU, *, has_text: bool = True
) -> Parts:
    """Make a full-size Mochi of random numbers.

    Args:
        dtypes: as for `Parts.read`.
        device: where the numbers are drawn: a GPU takes seconds, a CPU minutes.
        home: where they stay.
        has_text: as for `Parts.read`.
    """
    parts = empty_dummy(dtypes)
    generator = torch.Generator(device).manual_seed(SEED)
    for module in (parts.transformer, parts.vae, *[parts.text_encoder] * has_text):
        fill(module, generator, home)
    return parts


def empty_dummy(dtypes: Dtypes, blocks: int = 48) -> Parts:
    """A full-size Mochi on the device `meta`, where it has no numbers and takes no memory."""
    # Diffusers' defaults are the sizes of Mochi 1.
    with torch.device("meta"):
        transformer = MochiTransformer3DModel(num_layers=blocks)
        vae = AutoencoderKLMochi()
        text_encoder = T5EncoderModel(_t5_xxl())
    for module, dtype in (
        (transformer, dtypes.transformer),
        (vae, dtypes.vae),
        (text_encoder, dtypes.text),
    ):
        module.eval()  # without T5's dropout
        for name, parameter in module.named_parameters():
            is_kept = any(part in KEPT_IN_FLOAT32 for part in name.split("."))
            parameter.data = parameter.data.to(torch.float32 if is_kept else dtype)
    return Parts(
        character_tokenizer(),
        lambda: text_encoder,
        transformer,
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae,
    )


def fill(module: nn.Module, generator: torch.Generator, home: torch.device = CPU) -> None:
    """Give an empty module random numbers; `home` is where it stays."""
    module.to_empty(device=home)  # main memory takes none until it is written to
    if isinstance(module, T5EncoderModel):
        module.tie_weights()  # otherwise it holds its embeddings twice
    for name, parameter in module.named_parameters():
        values = random_values(name, parameter.shape, generator)
        parameter.data = values.to(parameter.dtype).to(home)


def _t5_xxl() -> T5Config:
    """Source: config.json of google/t5-v1_1-xxl."""
    return T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
