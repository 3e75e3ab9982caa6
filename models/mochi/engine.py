"""Mochi 1 as an `Engine`: from a prompt to frames, through the parts of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from models.cuda import translate_gpu_errors
from models.engine import Checkpoints, Clip, EncodeAhead, OnStep, Previews, Traits
from models.errors import OutOfMemoryError
from models.mochi.checkpoint import LatentsKeeper
from models.mochi.denoise import Schedule, denoise
from models.mochi.memory.host_copy import to_host
from models.mochi.network.adapters import Adapters
from models.mochi.network.attention import Kernel, use_kernel
from models.mochi.network.modulation import Conditioner
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.step_cache import StepCache
from models.mochi.network.text_encoder import MAX_TOKENS, Prompt, TextEncoder
from models.mochi.network.transformer import Core
from models.mochi.network.vae import Decoder
from models.mochi.preview import Previewer
from models.request.catalogue import MOCHI, NoiseSchedule
from models.request.params import TEMPORAL_FACTOR, GenerateParams

SPATIAL_FACTOR = 8
"""Pixels per latent, in a row and in a column."""
LATENT_CHANNELS = 12


@dataclass(frozen=True)
class MochiEngine:
    """Runs one request at a time.

    Attributes:
        text_encoder, conditioner, core, scheduler, decoder: the model, each on its device.
        device: of the latents.
        width, height: of a frame in pixels, multiples of 16.
        traits: see `Engine`.
        kernel: of the attention.
        colours: see `fit_colours`.
        step_cache: threshold of the step cache; 0 is off.
        remedy: what helps besides fewer frames when the GPU's memory is too small.
        origin: weights, options and versions, on which the latents depend besides the request and
            `traits`.
        ranks: the cards that share each video.
        noise: the schedule that the weights are trained for.
        adapters: of `core`; None where requests may name no LoRA.
    """

    text_encoder: TextEncoder
    conditioner: Conditioner
    core: Core
    scheduler: FlowMatchEulerDiscreteScheduler
    decoder: Decoder
    device: torch.device
    width: int
    height: int
    traits: Traits
    kernel: Kernel
    colours: Tensor
    step_cache: float = 0.0
    remedy: str = ""
    origin: str = ""
    ranks: Ranks = ALONE
    noise: NoiseSchedule = MOCHI.schedule
    adapters: Adapters | None = None

    @property
    def encode_ahead(self) -> EncodeAhead | None:
        """None where T5 works on the card."""
        return self._encode_ahead if self.text_encoder.works_on_cpu else None

    def comment(self, _params: GenerateParams) -> str:
        """See `Engine`: none."""
        return ""

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        """See `Engine`. The frames are decoded while they are drawn.

        Raises:
            OutOfMemoryError: the device has too little memory for so many frames.
            EngineBrokenError: CUDA has failed, and refuses further work of this process.
            EngineError: it lacks a LoRA that the request names.
        """
        self.traits.check_loras(params)
        with contextlib.suppress(torch.OutOfMemoryError), translate_gpu_errors(self.device):
            prompts = self._prompts(params)
            latents = self._denoise(
                params,
                list(prompts.values()),
                on_step,
                checkpoints=checkpoints,
                previews=previews,
                stop_after=stop_after,
            )
            frames = self._frames(latents, params)
            return Clip(self.width, self.height, frames, tuple(_warnings(prompts)))
        raise self._out_of_memory(params)

    def follow(
        self, params: GenerateParams, on_step: OnStep, stop_after: int | None = None
    ) -> None:
        """Do the part of this card in a video that rank 0 of its group generates.

        Raises:
            torch.OutOfMemoryError: the device has too little memory.
            EngineBrokenError: CUDA has failed.
        """
        with translate_gpu_errors(self.device):
            prompts = self._prompts(params)
            latents = self._denoise(params, list(prompts.values()), on_step, stop_after=stop_after)
            for _ in self.decoder.decode(latents):
                pass

    def _prompts(self, params: GenerateParams) -> dict[str, Prompt]:
        encode = self.text_encoder.encode
        return {name: self.ranks.prompt(text, encode) for name, text in _texts(params).items()}

    def _encode_ahead(self, params: GenerateParams) -> None:
        for text in _texts(params).values():
            self.text_encoder.encode(text)

    def _denoise(
        self,
        params: GenerateParams,
        prompts: list[Prompt],
        on_step: OnStep,
        *,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Tensor:
        if self.adapters:
            self.adapters.use(params.lora or {})
        schedule = Schedule.of(self.scheduler, params.steps, self.noise)
        last = stop_after or params.steps
        own = self.ranks.branches([prompt.embedding for prompt in prompts])
        conditions = self.conditioner(own, schedule.timesteps)
        on_step(0, last)
        with use_kernel(self.kernel):
            return denoise(
                self.core,
                self._noise(params),
                conditions,
                schedule,
                guidance_scale=params.guidance_scale,
                on_step=on_step,
                cache=StepCache(self.step_cache, self.ranks.total) if self.step_cache else None,
                keeper=self._keeper(params, checkpoints, stop_after),
                previewer=Previewer(previews, self.colours, last) if previews else None,
                ranks=self.ranks,
                stop_after=stop_after,
            )

    def _keeper(
        self, params: GenerateParams, checkpoints: Checkpoints | None, stop_after: int | None
    ) -> LatentsKeeper | None:
        """None with a step cache, whose state no checkpoint has: its runs start from the noise."""
        if checkpoints is None or self.step_cache:
            return None
        size = f"{self.width}x{self.height}"
        asked = params.model_dump_json(exclude={"lora"})
        if self.adapters and params.lora:
            asked += f" {self.adapters.identity(params.lora)}"
        identity = f"{asked} {self.traits!r} {size} {self.origin}"
        return LatentsKeeper(checkpoints, identity, params.steps, stop_after)

    def _noise(self, params: GenerateParams) -> Tensor:
        """Drawn on the CPU, so that a seed gives the same noise on every device."""
        frames = (params.model_frames - 1) // TEMPORAL_FACTOR + 1
        shape = (
            *(1, LATENT_CHANNELS, frames),
            *(self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR),
        )
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(params.seed))
        return noise.to(self.device)

    def _frames(self, latents: Tensor, params: GenerateParams) -> Iterator[bytes]:
        with contextlib.suppress(torch.OutOfMemoryError), translate_gpu_errors(self.device):
            yield from to_host(self.decoder.decode(latents), params.frames)
            return
        raise self._out_of_memory(params)

    def _out_of_memory(self, params: GenerateParams) -> OutOfMemoryError:
        # Called outside of `except`, where the exception still holds the tensors of the run.
        self.core.rope.of.cache_clear()  # the tables of this length
        torch.cuda.empty_cache()
        return OutOfMemoryError(
            f"The GPU has too little memory for {params.frames} frames. Ask for fewer frames"
            f"{self.remedy}."
        )


def _texts(params: GenerateParams) -> dict[str, str]:
    return {"negative_prompt": params.negative_prompt, "prompt": params.prompt}


def _warnings(prompts: dict[str, Prompt]) -> Iterator[str]:
    for name, prompt in prompts.items():
        if prompt.is_cut:
            yield (
                f"`{name}` has {prompt.tokens} tokens, and the text encoder reads {MAX_TOKENS}: "
                "its end was left out."
            )
