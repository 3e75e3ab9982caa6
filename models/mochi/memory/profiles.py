"""Memory profiles: what stays on the GPU, chosen from its size. Every one is lossless.

Sizes are in GiB. Those of weights are counted from the model; those of work are estimates for
the largest request, counted without a GPU (`docs/performance.md`), with a reserve for what CUDA
itself and the allocator's gaps take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.errors import EngineUnavailableError

ProfileName = Literal["80gb", "48gb", "24gb", "offload"]
Precision = Literal["reference", "bf16"]
TextHome = Literal["gpu", "per use", "cpu"]

CORE = 13.6
"""The transformer without its modulation, bfloat16."""
MODULATION = 5.0
STREAMED = 1.0
"""Of the core, when its blocks are fetched: two blocks, the last, and the small layers."""
TEXT = {"reference": 17.7, "bf16": 8.9}
"""T5-XXL's encoder in float32 and bfloat16."""
VAE = {"reference": 1.4, "bf16": 0.7}
"""The decoder in float32 and bfloat16."""
DENOISING = 6.0
"""Work at 163 frames."""
CACHES = {"reference": 5.5, "bf16": 2.75}
"""What the decoder needs whatever the size of its chunks: two frames of each convolution."""
DECODING = {"reference": 5.9, "bf16": 3.0}
"""Its work for each latent frame that it decodes at a time."""
RESERVE = 1.5
"""For CUDA itself, the allocator's gaps, and the tables of positions, 0.5 at 163 frames."""
STEP_CACHE = 1.5
"""What it keeps of a step, at 163 frames."""


def decoding(precision: Precision, chunk: int) -> float:
    """Work of the decoder in GiB, `chunk` latent frames at a time, however long the video is."""
    return CACHES[precision] + DECODING[precision] * chunk


@dataclass(frozen=True)
class Profile:
    """Where the parts of the model are between and during requests.

    Attributes:
        name: the size of the card it is made for.
        text: T5 lives on the GPU; in main memory and visits it for each new prompt; or works on
            the CPU, always in float32.
        keeps_modulation: whether the layers that make the tables stay on the GPU.
        streams_blocks: whether the blocks live in main memory.
        chunk: latent frames decoded at a time.
    """

    name: ProfileName
    text: TextHome
    keeps_modulation: bool
    streams_blocks: bool
    chunk: int

    def gib(self, precision: Precision) -> float:
        """Estimated peak of the GPU memory, for the largest request."""
        resident = STREAMED if self.streams_blocks else CORE
        resident += VAE[precision] + RESERVE
        resident += MODULATION if self.keeps_modulation else 0
        work = max(DENOISING, decoding(precision, self.chunk))
        if self.text == "gpu":
            return resident + TEXT[precision] + work
        if self.text == "per use":
            return resident + max(TEXT[precision], work)
        return resident + work


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile("80gb", "gpu", keeps_modulation=True, streams_blocks=False, chunk=2),
        Profile("48gb", "per use", keeps_modulation=False, streams_blocks=False, chunk=1),
        Profile("24gb", "cpu", keeps_modulation=False, streams_blocks=False, chunk=1),
        Profile("offload", "cpu", keeps_modulation=False, streams_blocks=True, chunk=1),
    )
}
"""The largest first."""

_PREFERRED: tuple[tuple[ProfileName, Precision], ...] = (
    ("80gb", "reference"),
    ("48gb", "reference"),
    ("24gb", "reference"),
    ("80gb", "bf16"),
    ("48gb", "bf16"),
    ("24gb", "bf16"),
    ("offload", "reference"),
    ("offload", "bf16"),
)
"""Best first: float32 before more on the GPU, but not before having to fetch the blocks."""


@dataclass(frozen=True)
class Plan:
    """A profile and a precision, and why.

    Attributes:
        reason: one sentence for the log.
    """

    profile: Profile
    precision: Precision
    reason: str


def choose_plan(
    free_gib: float, profile: ProfileName | Literal["auto"], precision: Precision | Literal["auto"]
) -> Plan:
    """The best plan for a card; what is not `auto` is kept to.

    Args:
        free_gib: memory of the card that nobody uses.
        profile: one of `PROFILES`, or `auto`. A named one is taken even where it seems too large.
        precision: `reference`, `bf16` or `auto`.

    Raises:
        EngineUnavailableError: no profile fits.
    """
    candidates = [
        (PROFILES[name], kind)
        for name, kind in _PREFERRED
        if profile in {"auto", name} and precision in {"auto", kind}
    ]
    for candidate, kind in candidates:
        if candidate.gib(kind) <= free_gib:
            reason = (
                f"{free_gib:.1f} GiB are free, and the longest video needs about "
                f"{candidate.gib(kind):.1f}"
            )
            return Plan(candidate, kind, reason)
    smallest, kind = candidates[-1]
    needs = smallest.gib(kind)
    if profile == "auto":
        remedy = "Choose"
        if precision == "reference":
            remedy = "Type MOCHI_PRECISION=auto, which needs less; or choose"
        raise EngineUnavailableError(
            f"{free_gib:.1f} GiB of GPU memory are free, and the smallest profile needs about "
            f"{needs:.1f}. {remedy} another card with MOCHI_DEVICE=cuda:N, free its memory, or "
            f"type MOCHI_PROFILE={smallest.name} to try all the same, with short videos."
        )
    return Plan(
        smallest, kind, f"asked for, though {free_gib:.1f} GiB are free of about {needs:.1f}"
    )
