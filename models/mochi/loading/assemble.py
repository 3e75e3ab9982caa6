"""Assembles parts to an engine: moves each to its device, and applies the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import diffusers
import torch
import transformers

from models.engine import Traits
from models.mochi.engine import SPATIAL_FACTOR, MochiEngine
from models.mochi.loading.compiling import compile_blocks
from models.mochi.memory.profiles import PROFILES, Profile
from models.mochi.network import fp8
from models.mochi.network.adapters import Adapters, NamedLora
from models.mochi.network.attention import Kernel
from models.mochi.network.modulation import Conditioner
from models.mochi.network.ranks import ALONE, GroupRanks, Ranks
from models.mochi.network.text_encoder import TextEncoder
from models.mochi.network.transformer import Core
from models.mochi.network.vae import Decoder
from models.mochi.parts import Parts
from models.mochi.preview import fit_colours
from models.request.catalogue import MOCHI, NoiseSchedule
from models.version import this_build

CPU = torch.device("cpu")
META = torch.device("meta")
"""Of the text encoder where rank 0 of a group has it: there, tensors take no memory."""


@dataclass(frozen=True)
class Options:
    """How an engine is assembled.

    Attributes:
        profile: what stays on the device.
        kernel: of the attention.
        compiles: whether blocks and decoder are compiled when they first run.
        fp8: matrix products of the blocks in 8-bit floats. Lossy.
        step_cache: threshold of the step cache; 0 is off. Lossy.
    """

    profile: Profile
    kernel: Kernel
    compiles: bool = False
    fp8: bool = False
    step_cache: float = 0.0

    @property
    def lossy(self) -> tuple[str, ...]:
        modes = {"fp8": self.fp8, f"step cache {self.step_cache:g}": bool(self.step_cache)}
        return tuple(name for name, is_on in modes.items() if is_on)


def assemble(
    parts: Parts,
    options: Options,
    traits: Traits,
    device: torch.device,
    size: tuple[int, int],
    *,
    weights_stamp: str = "",
    ranks: Ranks = ALONE,
    noise: NoiseSchedule = MOCHI.schedule,
    loras: Mapping[str, NamedLora] = MappingProxyType({}),
) -> MochiEngine:
    """Build an engine.

    Args:
        parts: on the CPU; unusable afterwards.
        options: see `Options`.
        traits: of the engine.
        device: where it works.
        size: width and height of the frames in pixels, multiples of 16.
        weights_stamp: see `LoadPlan`; empty where the traits identify the weights.
        ranks: the cards that share each video.
        noise: the schedule of the denoising steps.
        loras: that requests may name; all fit the transformer.

    Raises:
        torch.OutOfMemoryError: the weights alone are too large for the device.
    """
    profile = options.profile
    for module in (parts.transformer, parts.vae):
        module.requires_grad_(False)  # noqa: FBT003 (torch's own signature)
    conditioner = Conditioner(parts.transformer)
    conditioner.place(device, big_layers_too=profile.keeps_modulation)
    core = Core(parts.transformer)
    adapters = Adapters(core, loras) if loras else None
    _place(core, options, device)
    decoder = Decoder(parts.vae, chunk=profile.chunk)
    parts.vae.to(device)  # after the decoder has dropped the encoder
    colours = fit_colours(decoder, device, size[0] // SPATIAL_FACTOR, size[1] // SPATIAL_FACTOR)
    if isinstance(ranks, GroupRanks):
        core.join(ranks)
        decoder.join(ranks)
    if options.compiles:
        compile_blocks(core.blocks, in_halves=ranks.shares > 1)
        decoder.compile()
    return MochiEngine(
        text_encoder=_text_encoder(parts, profile, device if ranks.encodes else META),
        conditioner=conditioner,
        core=core,
        scheduler=parts.scheduler,
        decoder=decoder,
        device=device,
        width=size[0],
        height=size[1],
        traits=replace(traits, loras={name: lora.digest for name, lora in loras.items()}),
        kernel=options.kernel,
        colours=colours,
        step_cache=options.step_cache,
        remedy=_remedy(profile),
        origin=f"{weights_stamp} {options} {_versions()} T5 in {parts.text_encoder.dtype}",
        ranks=ranks,
        noise=noise,
        adapters=adapters,
    )


def _text_encoder(parts: Parts, profile: Profile, device: torch.device) -> TextEncoder:
    """Where `device` is `META`, without weights."""
    is_empty = device == META
    return TextEncoder(
        parts.tokenizer,
        parts.text_encoder,
        lives_on=device if is_empty or profile.text == "gpu" else CPU,
        works_on=CPU if profile.text == "cpu" and not is_empty else device,
    )


def _versions() -> dict[str, object]:
    """What brings the kernels, whose results differ in the last bits.

    The traits name the card. The CPU counts because T5 may work on it.
    """
    return {
        "mochi-server": this_build().version,
        **{library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "CPU": torch.backends.cpu.get_cpu_capability(),
    }


def _place(core: Core, options: Options, device: torch.device) -> None:
    streamed = options.profile.streamed
    if options.fp8:
        for number, block in enumerate(core.blocks):
            fp8.quantize(block.to(device))
            if number < streamed:
                block.to(CPU)
    core.place(device, streamed=streamed)


def _remedy(profile: Profile) -> str:
    names = list(PROFILES)
    smaller = names[names.index(profile.name) + 1 :]
    return f", or start the worker with MOCHI_PROFILE={smaller[0]}" if smaller else ""
