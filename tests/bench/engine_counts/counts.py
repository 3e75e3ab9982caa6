"""Counts the work of a request for a GPU, for stock diffusers and our engine.

Both are in bfloat16 and not compiled; see `fusion.py` for the effect of compiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.mochi.bench.shapes import Request
from models.mochi.denoise import Schedule, denoise
from models.mochi.memory.profiles import Precision
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.text_encoder import TextEncoder
from models.mochi.network.transformer import Core
from models.mochi.network.vae import Decoder
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.dummy import empty_dummy
from models.request.params import TEMPORAL_FACTOR
from tests.bench.engine_counts.tally import META, Tally, bytes_of, tallied

PADDED_TOKENS = 256
"""Of a prompt, in the stock pipeline."""

BF16 = Dtypes(torch.bfloat16, torch.bfloat16, torch.bfloat16)


@dataclass(frozen=True)
class Counts:
    """The counts of one engine.

    Attributes:
        text: encoding of both prompts.
        conditioning: the modulation tables of a request; nothing in stock.
        step: a denoising step after the first, both branches of guidance.
        decoding: latents to frames in main memory.
    """

    text: Tally
    conditioning: Tally
    step: Tally
    decoding: Tally


@dataclass(frozen=True)
class Plan:
    """The compiler's plan for a module; see `fusion.py`.

    Attributes:
        kernels: generated kernels, for element-wise work, reductions and copies.
        externs: calls of libraries, for products and attention.
        bytes: read and written by the generated kernels.
        extern_bytes: read and written by the libraries.
    """

    kernels: int
    externs: int
    bytes: int
    extern_bytes: int

    def __add__(self, other: Plan) -> Plan:
        return Plan(
            self.kernels + other.kernels,
            self.externs + other.externs,
            self.bytes + other.bytes,
            self.extern_bytes + other.extern_bytes,
        )

    def __mul__(self, times: int) -> Plan:
        return Plan(
            self.kernels * times,
            self.externs * times,
            self.bytes * times,
            self.extern_bytes * times,
        )


def count_stock(parts: Parts, request: Request) -> Counts:
    """Run the stock pipeline of diffusers on `meta`.

    Args:
        parts: on `meta`; usable afterwards.
        request: its number of steps makes no difference.
    """
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    parts.transformer.rope._create_rope = _create_rope
    with tallied() as text:
        embeddings = pipeline.encode_prompt(_text(request), "", device=META)
    counted = list(zip(embeddings[::2], embeddings[1::2], strict=True))
    (prompt, mask), (negative, negative_mask) = counted
    blocks = len(parts.transformer.transformer_blocks)
    marks: list[Tally] = []
    with tallied(found=[0, request.tokens] * blocks * 2) as loop:

        def mark(*_: object) -> dict[str, Tensor]:
            marks.append(loop.copy())
            return {}

        latents = pipeline(
            prompt_embeds=prompt,
            prompt_attention_mask=mask,
            negative_prompt_embeds=negative,
            negative_prompt_attention_mask=negative_mask,
            width=request.size[0],
            height=request.size[1],
            num_frames=(request.latent_frames - 1) * TEMPORAL_FACTOR + 1,
            num_inference_steps=2,
            output_type="latent",
            callback_on_step_end=mark,
        ).frames
    with tallied(held=[latents]) as decoding:
        video = pipeline.vae.decode(latents, return_dict=False)[0]
        pipeline.video_processor.postprocess_video(video, output_type="np")
    return Counts(text, Tally(), marks[1] - marks[0], decoding)


def count_ours(parts: Parts, request: Request, *, chunk: int = 2) -> Counts:
    """Run our engine's parts on `meta`.

    Args:
        parts: on `meta`; unusable afterwards.
        request: to count.
        chunk: see `Decoder`.
    """
    encoder = TextEncoder(parts.tokenizer, parts.text_encoder, lives_on=META, works_on=META)
    with tallied() as text:
        prompts = [encoder.encode(words).embedding for words in ("", _text(request))]
    schedule = Schedule.of(parts.scheduler, request.steps)
    conditioner, core = Conditioner(parts.transformer), core_on_meta(parts)
    with tallied(held=prompts) as conditioning:
        conditions = conditioner(prompts, schedule.timesteps)
    decoder = Decoder(parts.vae, chunk=chunk)
    latents = torch.empty(request.latent_shape, device=META)
    return Counts(
        text,
        conditioning,
        _count_step(core, latents, conditions, schedule),
        count_decoding(decoder, latents),
    )


def count_decoding(decoder: Decoder, latents: Tensor) -> Tally:
    """Decode on `meta`, and copy the frames to main memory."""
    with tallied(held=[latents]) as decoding:
        for chunk in decoder.decode(latents):
            chunk.to("cpu", non_blocking=True)
    return decoding


def _count_step(
    core: Core, latents: Tensor, conditions: list[Condition], schedule: Schedule
) -> Tally:
    marks: list[Tally] = []
    away_from, towards = conditions
    two = Schedule(schedule.timesteps[:2], schedule.deltas[:2])
    with tallied(held=[latents, *tensors_of(conditions)]) as loop:
        denoise(
            core,
            latents,
            (away_from, towards),
            two,
            guidance_scale=4.5,
            on_step=lambda *_: marks.append(loop.copy()),
        )
    return marks[1] - marks[0]


def tensors_of(conditions: list[Condition]) -> Iterator[Tensor]:
    """The tensors that a request keeps of its prompts during the loop."""
    for condition in conditions:
        yield condition.text
        yield condition.output
        for tables in condition.blocks:
            yield from tables


def core_on_meta(parts: Parts) -> Core:
    """Take over the transformer of parts on `meta`."""
    core = Core(parts.transformer)
    core.rope.to(META)
    return core


def _create_rope(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """As `MochiRoPE`, without its `autocast`, which does not support `meta`."""
    angles = torch.einsum("nd,dhf->nhf", positions, frequencies.float())
    return angles.cos(), angles.sin()


def _text(request: Request) -> str:
    """A text of so many tokens for the dummy's tokenizer, which adds a start and an end mark."""
    return "a" * (request.tokens - 2)


# Memory


@dataclass(frozen=True)
class Memory:
    """Sizes in GiB that `models/mochi/memory/profiles.py` estimates under the same names.

    Attributes:
        decoding: for each number of latent frames at a time.
        stock_decoding: of the stock VAE without tiles, in float32.
    """

    core: float
    modulation: float
    block: float
    text: dict[Precision, float]
    vae: float
    denoising: float
    decoding: dict[int, float]
    stock_decoding: float | None


LARGEST = Request(frames=163, tokens=256, steps=75)
"""The longest request of the API: 160 frames have 28 latent frames, as 163 have."""


def count_memory(
    chunks: tuple[int, ...] = (1, 2), blocks: int = 48, *, with_stock: bool = True
) -> Memory:
    """Count the memory of the longest request, with `blocks` of the full-size model's 48."""
    single, half = (
        empty_dummy(Dtypes(text, torch.bfloat16, torch.bfloat16), blocks)
        for text in (torch.float32, torch.bfloat16)
    )
    latents = torch.empty(LARGEST.latent_shape, device=META)
    conditioner = Conditioner(half.transformer)
    core = core_on_meta(half)
    # On the device in every profile.
    embedding = _weights(conditioner.embed)
    core_gib = _weights(core) + embedding
    return Memory(
        core=core_gib,
        modulation=_weights(conditioner) - embedding,
        block=_weights(core.blocks[0]),
        text={"reference": _weights(single.text_encoder), "bf16": _weights(half.text_encoder)},
        vae=_weights(half.vae.decoder),
        denoising=_gib(_denoising(conditioner, core, latents)),
        decoding={chunk: _gib(_decoding(latents, chunk)) for chunk in chunks},
        stock_decoding=_gib(count_stock_decoding(latents)) if with_stock else None,
    )


def count_stock_decoding(latents: Tensor) -> int:
    """Peak in bytes of the stock VAE on `meta` in float32, the whole clip at once."""
    vae = empty_dummy(Dtypes(), 1).vae
    with tallied(held=[latents]) as decoding:
        vae.decode(latents)
    return decoding.peak


def _decoding(latents: Tensor, chunk: int) -> int:
    decoder = Decoder(empty_dummy(Dtypes(vae=torch.bfloat16), 1).vae, chunk=chunk)
    # From the third chunk on, the memory does not change.
    return count_decoding(decoder, latents[:, :, : 3 * chunk]).peak


def _denoising(conditioner: Conditioner, core: Core, latents: Tensor) -> int:
    """Peak in bytes, from two prompts of full length on."""
    steps = LARGEST.steps
    schedule = Schedule(torch.zeros(steps), (0.0,) * steps)
    prompts = [torch.empty(LARGEST.tokens, 4096, device=META) for _ in range(2)]
    with tallied(held=[latents, *prompts]) as request:
        away_from, towards = conditioner(prompts, schedule.timesteps)
        denoise(
            core,
            latents,
            (away_from, towards),
            Schedule(schedule.timesteps[:2], schedule.deltas[:2]),
            guidance_scale=4.5,
            on_step=lambda *_: None,
        )
    return request.peak


def _weights(module: torch.nn.Module) -> float:
    return _gib(bytes_of(module.parameters()))


def _gib(size: int) -> float:
    return size / 2**30
