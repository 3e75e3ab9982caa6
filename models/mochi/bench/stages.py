"""One request, taken apart into stages while it runs as always: ours, and the stock pipeline's."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLMochi, MochiPipeline
from torch import Tensor

from models.engine import Clip, OnStep
from models.mochi.engine import MochiEngine
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.text_encoder import Prompt, TextEncoder
from models.mochi.network.vae import Decoder
from models.params import GenerateParams
from models.video import encode

Mark = Any
"""A CUDA event, or what the clock said."""


@dataclass
class Times:
    """Seconds of one request.

    Attributes:
        total: from the parameters to the finished MP4.
        text: encoding of the prompts.
        conditioning: the tables that ours makes of the prompts; 0 for stock.
        steps: each denoising step.
        decoding: of latents, by the VAE.
    """

    total: float
    text: float
    conditioning: float
    steps: list[float] = field(repr=False)
    decoding: float

    @property
    def denoising(self) -> float:
        """All steps."""
        return sum(self.steps)

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(self.steps)

    @property
    def rest(self) -> float:
        """What nothing of the above accounts for: noise, copies to main memory, H.264."""
        return self.total - self.text - self.conditioning - self.denoising - self.decoding


class Stages:
    """Marks in the work of a device, which does not wait for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Mark, Mark]]] = {
            "text": [],
            "conditioning": [],
            "decoding": [],
        }
        self._steps: list[Mark] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What is given to the device inside belongs to the stage `name`."""
        before = self._now()
        yield
        self._spans[name].append((before, self._now()))

    def step(self, *_: object) -> None:
        """The loop begins, or a step has ended."""
        self._steps.append(self._now())

    def times(self, total: float) -> Times:
        """All stages of a request that took `total` seconds and is over."""
        seconds = {
            name: sum(_seconds(*span) for span in spans) for name, spans in self._spans.items()
        }
        steps = [
            _seconds(before, after)
            for before, after in zip(self._steps, self._steps[1:], strict=False)
        ]
        return Times(total, seconds["text"], seconds["conditioning"], steps, seconds["decoding"])

    def _now(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds(before: Mark, after: Mark) -> float:
    if isinstance(before, float):
        return float(after - before)
    return float(before.elapsed_time(after) / 1000)


def wait(device: torch.device) -> None:
    """Until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_ours(
    engine: MochiEngine, params: GenerateParams, path: Path, on_step: OnStep | None = None
) -> Times:
    """Make a video with our engine.

    Raises:
        MochiError: as `MochiEngine.generate`.
    """
    stages = Stages(engine.device)

    def step(done: int, steps: int) -> None:
        if not done:
            return  # what comes before is spans
        stages.step()
        if on_step is not None:
            on_step(done, steps)

    watched: Any = replace(
        engine,
        text_encoder=_Text(engine.text_encoder, stages),  # type: ignore[arg-type]
        conditioner=_Conditioning(engine.conditioner, stages),  # type: ignore[arg-type]
        decoder=_Decoding(engine.decoder, stages),  # type: ignore[arg-type]
    )
    wait(engine.device)
    started = time.perf_counter()
    encode(watched.generate(params, step), params.fps, path)
    wait(engine.device)
    return stages.times(time.perf_counter() - started)


@dataclass
class _Text:
    inner: TextEncoder
    stages: Stages

    def encode(self, text: str) -> Prompt:
        with self.stages.span("text"):
            return self.inner.encode(text)


@dataclass
class _Conditioning:
    inner: Conditioner
    stages: Stages

    def __call__(self, prompts: Sequence[Tensor], timesteps: Tensor) -> list[Condition]:
        with self.stages.span("conditioning"):
            conditions: list[Condition] = self.inner(prompts, timesteps)
        self.stages.step()
        return conditions


@dataclass
class _Decoding:
    inner: Decoder
    stages: Stages

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        chunks = self.inner.decode(latents)
        while True:
            with self.stages.span("decoding"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


@torch.no_grad()
def run_stock(
    pipeline: MochiPipeline,
    params: GenerateParams,
    path: Path,
    size: tuple[int, int],
    *,
    mixed: bool = False,
    on_step: OnStep | None = None,
) -> Times:
    """Make a video with the stock pipeline, eager, as diffusers' documents say.

    Args:
        pipeline: on its device.
        params: what is asked for.
        path: of the MP4.
        size: of the frames, width and height.
        mixed: see `Subjects`.
        on_step: as for `generate`.
    """
    device = pipeline.device
    stages = Stages(device)

    def step(_: object, index: int, *__: object) -> dict[str, Tensor]:
        stages.step()
        if on_step is not None:
            on_step(index + 1, params.steps)
        return {}

    wait(device)
    started = time.perf_counter()
    with stages.span("text"):
        prompt, mask, negative, negative_mask = pipeline.encode_prompt(
            params.prompt, params.negative_prompt
        )
    stages.step()
    with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        # MochiRoPE asks for float32 where a CPU's autocast knows none, and gets it all the same.
        warnings.filterwarnings("ignore", "In CPU autocast")
        latents = pipeline(
            prompt_embeds=prompt,
            prompt_attention_mask=mask,
            negative_prompt_embeds=negative,
            negative_prompt_attention_mask=negative_mask,
            width=size[0],
            height=size[1],
            num_frames=params.model_frames,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance_scale,
            generator=torch.Generator().manual_seed(params.seed),
            output_type="latent",
            callback_on_step_end=step,
        ).frames
    with stages.span("decoding"):
        video = pipeline.vae.decode(
            unnormalised(pipeline.vae, latents).to(pipeline.vae.dtype), return_dict=False
        )[0]
    pictures = pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
    frames = (picture.tobytes() for picture in pictures[: params.frames])
    encode(Clip(*size, frames), params.fps, path)
    wait(device)
    return stages.times(time.perf_counter() - started)


def unnormalised(vae: AutoencoderKLMochi, latents: Tensor) -> Tensor:
    """What `MochiPipeline.__call__` does before it decodes."""
    config = vae.config
    mean = latents.new_tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = latents.new_tensor(config.latents_std).view(1, -1, 1, 1, 1)
    unscaled: Tensor = latents * std / config.scaling_factor
    return unscaled + mean
