"""Small Mochis of random numbers: diffusers' own, and the same taken over by the engine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from models.mochi.denoise import Schedule, denoise
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.step_cache import StepCache
from models.mochi.network.transformer import Core
from models.mochi.parts import KEPT_IN_FLOAT32
from models.mochi.synthetic.mock import character_tokenizer
from models.mochi.synthetic.values import random_values

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As malloc.h of glibc has them."""

# Threads that wait for each other over so little work cost more than they bring.
torch.set_num_threads(1)

# glibc gives large blocks back at once, and the kernel clears them anew for the next tensor.
if hasattr(ctypes.CDLL(None), "mallopt"):
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, 1 << 30)

CPU = torch.device("cpu")
TEXT_WIDTH = 48
LONGEST = 256
"""Tokens of a text as diffusers pads it."""
GUIDANCE = 4.5


def randomise(module: nn.Module, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Make a module ready for inference. As in the engine, its delicate parts are float32."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        is_kept = any(part in KEPT_IN_FLOAT32 for part in name.split("."))
        values = random_values(name, parameter.shape, generator)
        parameter.data = values if is_kept else values.to(dtype)
    module.eval().requires_grad_(False)


def make_stock(
    blocks: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> MochiTransformer3DModel:
    """Diffusers' transformer."""
    stock = MochiTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=blocks,
        pooled_projection_dim=32,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=32,
    )
    randomise(stock, dtype, seed)
    return stock


def take_over(stock: MochiTransformer3DModel, *, streamed: int = 0) -> tuple[Conditioner, Core]:
    """Its layers as the engine arranges them; `stock` is useless afterwards."""
    conditioner, core = Conditioner(stock), Core(stock)
    conditioner.place(CPU)
    core.place(CPU, streamed=streamed)
    return conditioner, core


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers, the same for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def noise(
    frames: int = 2,
    height: int = 6,
    width: int = 8,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Latents to start from. Two by two of them are a token."""
    return normal(1, 12, frames, height, width, seed=seed, dtype=dtype)


def embeddings(
    *lengths: int, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = TEXT_WIDTH
) -> list[Tensor]:
    """One for each length."""
    return [
        normal(length, width, seed=1000 * seed + number, dtype=dtype)
        for number, length in enumerate(lengths)
    ]


def pad(
    prompts: Sequence[Tensor], *, length: int = LONGEST, seed: int = 77
) -> tuple[Tensor, Tensor]:
    """Prompts and their mask, as diffusers has them; in the padding there is noise."""
    padded = normal(len(prompts), length, prompts[0].shape[1], seed=seed, dtype=prompts[0].dtype)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(length) < lengths[:, None]
    padded[mask] = torch.cat(list(prompts))
    return padded, mask


def stock_velocities(
    stock: MochiTransformer3DModel,
    latents: Tensor,
    prompts: Sequence[Tensor],
    timestep: Tensor,
    **padding: int,
) -> list[Tensor]:
    """The stock transformer's answer, to all prompts as one batch."""
    padded, mask = pad(prompts, **padding)
    velocities: Tensor = stock(
        hidden_states=latents.expand(len(prompts), *latents.shape[1:]),
        encoder_hidden_states=padded,
        timestep=timestep.expand(len(prompts)),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return list(velocities.chunk(len(prompts)))


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As it comes with Mochi's weights."""
    return FlowMatchEulerDiscreteScheduler(invert_sigmas=True)


def make_text_encoder() -> T5EncoderModel:
    """A T5 for the character tokenizer."""
    encoder: T5EncoderModel = T5EncoderModel(
        T5Config(
            vocab_size=len(character_tokenizer()),
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    randomise(encoder, seed=5)
    return encoder


def make_pipeline(
    stock: MochiTransformer3DModel, text_encoder: T5EncoderModel | None = None
) -> MochiPipeline:
    """The stock pipeline as far as the latents."""
    pipeline = MochiPipeline(
        scheduler=make_scheduler(),
        vae=None,
        text_encoder=text_encoder,
        tokenizer=character_tokenizer() if text_encoder else None,
        transformer=stock,
        force_zeros_for_empty_prompt=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass
class Run:
    """What the stock pipeline did.

    Attributes:
        latents: at the end.
        seen: latents before each step.
        timesteps: as its transformer was told.
        velocities: at each step, of the negative prompt and of the prompt.
    """

    latents: Tensor
    seen: list[Tensor]
    timesteps: list[Tensor]
    velocities: list[list[Tensor]]


def stock_loop(
    stock: MochiTransformer3DModel,
    prompts: Sequence[Tensor],
    latents: Tensor,
    steps: int = 30,
    guidance_scale: float = GUIDANCE,
) -> Run:
    """Run the stock pipeline. It rounds its latents to the dtype of the prompts."""
    (without, prompt), (mask_without, mask) = (tensor.chunk(2) for tensor in pad(prompts))
    run = Run(latents, [], [], [])

    def watch(_: nn.Module, __: object, inputs: dict[str, Any], outputs: tuple[Tensor]) -> None:
        run.seen.append(inputs["hidden_states"][:1])
        run.timesteps.append(inputs["timestep"][0])
        run.velocities.append(list(outputs[0].chunk(len(outputs[0]))))

    hook = stock.register_forward_hook(watch, with_kwargs=True)
    run.latents = make_pipeline(stock)(
        negative_prompt_embeds=without,
        negative_prompt_attention_mask=mask_without,
        prompt_embeds=prompt,
        prompt_attention_mask=mask,
        latents=latents,
        height=8 * latents.shape[3],
        width=8 * latents.shape[4],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        return_dict=False,
    )[0]
    hook.remove()
    return run


def our_conditions(
    conditioner: Conditioner,
    prompts: Sequence[Tensor],
    steps: int = 30,
    timesteps: torch.dtype = torch.float32,
) -> tuple[Condition, Condition]:
    """Of the negative prompt and of the prompt, for all steps."""
    schedule = Schedule.of(make_scheduler(), steps)
    away_from, towards = conditioner(prompts, schedule.timesteps.to(timesteps))
    return away_from, towards


def our_loop(
    core: Core,
    conditions: tuple[Condition, Condition],
    latents: Tensor,
    guidance_scale: float = GUIDANCE,
    cache: StepCache | None = None,
) -> Tensor:
    """Run the engine's loop."""
    return denoise(
        core,
        latents,
        conditions,
        Schedule.of(make_scheduler(), len(conditions[0].output)),
        guidance_scale=guidance_scale,
        on_step=lambda _step, _steps: None,
        cache=cache,
    )


def error(value: Tensor, expected: Tensor) -> float:
    """Root mean square, relative to that of what is expected. `pytest -rP` shows it."""
    assert value.shape == expected.shape
    expected = expected.double()
    relative = float((value.double() - expected).norm() / expected.norm())
    print(f"error {relative:.3g}")  # noqa: T201 (the figure of a test)
    return relative
