"""Times the stages of a request while it runs as usual, for our engine and the stock pipeline."""

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
from diffusers import MochiPipeline
from torch import Tensor

from models.engine import Clip, OnStep
from models.mochi.engine import MochiEngine
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.text_encoder import Prompt, TextEncoder
from models.mochi.network.vae import Decoder, unnormalised
from models.request.params import GenerateParams
from models.video.encoding import encode

Mark = Any
"""A moment on the device: a CUDA event, or the clock's seconds on a CPU."""


@dataclass
class Times:
    """Seconds of one request.

    Attributes:
        total: from the parameters to the finished MP4.
        text: encoding of the prompts.
        conditioning: the modulation tables of our engine; 0 for stock.
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
        return sum(self.steps)

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(self.steps)

    @property
    def rest(self) -> float:
        """Noise, copies to main memory, H.264."""
        return self.total - self.text - self.conditioning - self.denoising - self.decoding


class Stages:
    """Marks the work of a device by stage, without waiting for it."""

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
        """Count the work that is launched inside as part of the stage `name`."""
        before = self._now()
        yield
        self._spans[name].append((before, self._now()))

    def step(self) -> None:
        """Mark the start of the loop, and then the end of each step."""
        self._steps.append(self._now())

    def times(self, total: float) -> Times:
        """The stages of a finished request that took `total` seconds."""
        seconds = {
            name: sum(_seconds(*span) for span in spans) for name, spans in self._spans.items()
        }
        pairs = zip(self._steps, self._steps[1:], strict=False)
        steps = [_seconds(before, after) for before, after in pairs]
        return Times(total, steps=steps, **seconds)

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
            return  # `_TimedConditioner` marks the start of the loop
        stages.step()
        if on_step is not None:
            on_step(done, steps)

    timed: Any = replace(
        engine,
        text_encoder=_TimedTextEncoder(engine.text_encoder, stages),  # type: ignore[arg-type]
        conditioner=_TimedConditioner(engine.conditioner, stages),  # type: ignore[arg-type]
        decoder=_TimedDecoder(engine.decoder, stages),  # type: ignore[arg-type]
    )
    wait(engine.device)
    started = time.perf_counter()
    encode(timed.generate(params, step), params.fps, path)
    wait(engine.device)
    return stages.times(time.perf_counter() - started)


@dataclass
class _TimedTextEncoder:
    inner: TextEncoder
    stages: Stages

    def encode(self, text: str) -> Prompt:
        with self.stages.span("text"):
            return self.inner.encode(text)


@dataclass
class _TimedConditioner:
    inner: Conditioner
    stages: Stages

    def __call__(self, prompts: Sequence[Tensor], timesteps: Tensor) -> list[Condition]:
        with self.stages.span("conditioning"):
            conditions: list[Condition] = self.inner(prompts, timesteps)
        self.stages.step()
        return conditions


@dataclass
class _TimedDecoder:
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
    """Make a video with the stock pipeline, eager, as in diffusers' documentation.

    Args:
        pipeline: on its device.
        params: of the request.
        path: of the MP4.
        size: of the frames: width and height.
        mixed: see `Subjects`.
        on_step: as for `generate`.
    """
    stages = Stages(pipeline.device)

    def step(_: object, index: int, *__: object) -> dict[str, Tensor]:
        stages.step()
        if on_step is not None:
            on_step(index + 1, params.steps)
        return {}

    wait(pipeline.device)
    started = time.perf_counter()
    with stages.span("text"):
        prompt, mask, negative, negative_mask = pipeline.encode_prompt(
            params.prompt, params.negative_prompt
        )
    stages.step()
    with _autocast(pipeline.device, enabled=mixed):
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
    vae = pipeline.vae
    with stages.span("decoding"):
        inputs = unnormalised(latents, vae.config).to(vae.dtype)
        with _autocast(pipeline.device, enabled=vae.dtype == torch.bfloat16):
            video = vae.decode(inputs, return_dict=False)[0]
    pictures = pipeline.video_processor.postprocess_video(video, output_type="pil")[0]
    frames = (picture.tobytes() for picture in pictures[: params.frames])
    encode(Clip(*size, frames), params.fps, path)
    wait(pipeline.device)
    return stages.times(time.perf_counter() - started)


@contextmanager
def _autocast(device: torch.device, *, enabled: bool) -> Iterator[None]:
    with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        # MochiRoPE asks for float32, which a CPU's autocast warns of and computes all the same.
        warnings.filterwarnings("ignore", "In CPU autocast")
        yield
