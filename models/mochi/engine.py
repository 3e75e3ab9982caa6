"""Mochi 1 as an `Engine`, over the pipeline of diffusers. Does not know where weights come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import MochiPipeline

from models.engine import Clip, OnStep
from models.errors import EngineBrokenError, OutOfMemoryError
from models.params import GenerateParams


class MochiEngine:
    """Runs one request at a time, on the device that the pipeline was put on."""

    def __init__(self, pipeline: MochiPipeline, width: int, height: int) -> None:
        """Make an engine.

        Args:
            pipeline: with its weights loaded; the engine's own from now on.
            width: pixels in a row of a frame, a multiple of 16.
            height: rows of a frame, a multiple of 16.
        """
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._width = width
        self._height = height

    @property
    def description(self) -> str:
        """See `Engine`."""
        device = self._pipeline.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        precision = str(self._pipeline.dtype).removeprefix("torch.")
        return f"Mochi 1, {precision}, {where}"

    def generate(self, params: GenerateParams, on_step: OnStep) -> Clip:
        """See `Engine`. The frames are all made, as bytes in main memory, when this returns.

        Raises:
            OutOfMemoryError: the device is too small for so many frames.
            EngineBrokenError: an error of CUDA, after which it refuses this process all work.
        """
        with contextlib.suppress(torch.OutOfMemoryError), _broken_device():
            return Clip(self._width, self._height, _bytes(self._frames(params, on_step)))
        # The exception held the tensors of the failed run; without it their memory can go back.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(
            f"The GPU has too little memory for {params.frames} frames. Ask for fewer frames."
        )

    def _frames(self, params: GenerateParams, on_step: OnStep) -> torch.Tensor:
        """Generate; uint8 RGB of the shape (frames, height, width, 3), in main memory."""

        def step_ended(_: MochiPipeline, index: int, *__: object) -> dict[str, Any]:
            on_step(index + 1, params.steps)
            return {}

        video: torch.Tensor = self._pipeline(
            prompt=params.prompt,
            negative_prompt=params.negative_prompt,
            width=self._width,
            height=self._height,
            num_frames=params.model_frames,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance_scale,
            # On the CPU, so that a seed means the same noise whatever the device.
            generator=torch.Generator().manual_seed(params.seed),
            callback_on_step_end=step_ended,
            callback_on_step_end_tensor_inputs=[],
            output_type="pt",
        ).frames[0]
        # Converted on the device: a quarter of the bytes to copy, and no work for the CPU.
        wanted = video[: params.frames].float().mul(255).round().to(torch.uint8)
        return wanted.permute(0, 2, 3, 1).contiguous().cpu()


@contextlib.contextmanager
def _broken_device() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            raise EngineBrokenError("The GPU failed.") from error
        raise


def _bytes(frames: torch.Tensor) -> Iterator[bytes]:
    for frame in frames:
        yield frame.numpy().tobytes()
