"""Memory profiles: what stays on the GPU, chosen by its size. All profiles are lossless.

Sizes are in GiB. Those of weights are counted from the model. Those of work are estimates for the
longest request, counted without a GPU (`docs/operate/performance.md`), with a reserve for CUDA
itself and the allocator's gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, Unpack

from models.errors import EngineUnavailableError

ProfileName = Literal["80gb", "48gb", "24gb", "offload"]
Precision = Literal["reference", "bf16"]
TextHome = Literal["gpu", "per use", "cpu"]

CORE = 13.6
"""The transformer without its modulation, bfloat16."""
MODULATION = 5.0
BLOCKS = 48
BLOCK = 0.28
"""One of the core's blocks; the last is smaller."""
FP8_SAVES = 0.105
"""Of each block, by its big matrices in 8 bits."""
SLOTS = 2
"""Blocks on the GPU that streamed ones take turns in."""
TEXT = {"reference": 17.7, "bf16": 8.9}
"""T5-XXL's encoder in float32 and bfloat16."""
VAE = 0.7
"""The decoder, bfloat16."""
DENOISING = 6.0
"""Work at 163 frames."""
CACHES = 2.75
"""Two frames of each convolution of the decoder, whatever the size of its chunks."""
DECODING = 3.0
"""Work of the decoder for each latent frame that it decodes at a time."""
RESERVE = 1.5
"""CUDA itself, the allocator's gaps, and the tables of positions, 0.5 at 163 frames."""
STEP_CACHE = 1.5
"""What the step cache keeps of a step, at 163 frames."""
EXCHANGE = 1.0
"""Of a card of a group: NCCL's buffers, and frames on their way. An estimate."""


class Modes(TypedDict, total=False):
    """What changes the memory that a profile needs.

    Attributes:
        fp8: whether the blocks are in 8 bits.
        step_cache: whether the step cache is on.
        group: whether several cards share each video.
        adapters: GiB of each block's adapters, for the LoRAs that requests may name.
    """

    fp8: bool
    step_cache: bool
    group: bool
    adapters: float


def decoding(chunk: int) -> float:
    """Work of the decoder in GiB at `chunk` latent frames at a time, for any length of video."""
    return CACHES + DECODING * chunk


@dataclass(frozen=True)
class Profile:
    """Where the parts of the model are, between and during requests.

    Attributes:
        name: the size of the card that the profile is made for.
        text: T5 lives on the GPU; or in main memory, and is copied to the GPU for each new prompt;
            or works on the CPU, where `reference` takes no more of the GPU than `bf16`.
        keeps_modulation: whether the layers that compute the modulation stay on the GPU.
        chunk: latent frames decoded at a time.
        streamed: blocks that live in main memory; they change no frame.
    """

    name: ProfileName
    text: TextHome
    keeps_modulation: bool
    chunk: int
    streamed: int = field(default=0, repr=False)

    def gib(self, precision: Precision, **modes: Unpack[Modes]) -> float:
        """Estimated peak of the GPU memory, for the longest request."""
        more = modes.get("adapters", 0.0) - (FP8_SAVES if modes.get("fp8") else 0.0)
        resident = CORE + BLOCKS * more - max(self.streamed - SLOTS, 0) * (BLOCK + more)
        resident += VAE + RESERVE + (STEP_CACHE if modes.get("step_cache") else 0)
        resident += EXCHANGE if modes.get("group") else 0
        resident += MODULATION if self.keeps_modulation else 0
        work = max(DENOISING, decoding(self.chunk))
        if self.text == "gpu":
            return resident + TEXT[precision] + work
        if self.text == "per use":
            return resident + max(TEXT[precision], work)
        return resident + work


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile("80gb", "gpu", keeps_modulation=True, chunk=2),
        Profile("48gb", "per use", keeps_modulation=False, chunk=1),
        Profile("24gb", "cpu", keeps_modulation=False, chunk=1),
        Profile("offload", "cpu", keeps_modulation=False, chunk=1, streamed=BLOCKS - 1),
    )
}
"""The largest first."""

_ALL = (
    *list(PROFILES.values())[:-1],
    *(replace(PROFILES["offload"], streamed=count) for count in range(SLOTS + 1, BLOCKS)),
)
"""The best first."""

_PRECISIONS: tuple[Precision, ...] = ("reference", "bf16")
"""The better first; it goes before more weights on the GPU."""


@dataclass(frozen=True)
class MemoryPlan:
    """A profile and a precision.

    Attributes:
        reason: a sentence for the log.
        peak_gib: see `Profile.gib`.
    """

    profile: Profile
    precision: Precision
    reason: str
    peak_gib: float = 0.0


def plan_memory(
    free_gib: float,
    profile: ProfileName | Literal["auto"],
    precision: Precision | Literal["auto"],
    **modes: Unpack[Modes],
) -> MemoryPlan:
    """The best plan for a card, within what the settings name.

    Args:
        free_gib: free memory of the card; of a group, the least.
        profile: one of `PROFILES`, or `auto`, which streams no more blocks than it has to. A named
            one is used even where it seems too large.
        precision: `reference`, `bf16` or `auto`.
        modes: see `Modes`.

    Raises:
        EngineUnavailableError: `profile` is `auto`, and no profile fits.
    """
    candidates = [
        MemoryPlan(each, kind, "", each.gib(kind, **modes))
        for kind in _PRECISIONS
        if precision in {"auto", kind}
        for each in (_ALL if profile == "auto" else [PROFILES[profile]])
    ]
    for plan in candidates:
        if plan.peak_gib <= free_gib:
            needs = f"the longest video needs about {plan.peak_gib:.1f}"
            return replace(plan, reason=f"{free_gib:.1f} GiB are free, and {needs}")
    smallest = min(candidates, key=lambda plan: plan.peak_gib)
    if profile == "auto":
        raise EngineUnavailableError(_too_small(free_gib, smallest))
    needs = f"{free_gib:.1f} GiB are free of about {smallest.peak_gib:.1f}"
    return replace(smallest, reason=f"asked for, though {needs}")


def _too_small(free_gib: float, smallest: MemoryPlan) -> str:
    return (
        f"{free_gib:.1f} GiB of GPU memory are free, and the smallest profile needs about "
        f"{smallest.peak_gib:.1f}. Choose another card with MOCHI_DEVICE=cuda:N, free its "
        f"memory, or type MOCHI_PROFILE={smallest.profile.name} to try it with short videos."
    )
