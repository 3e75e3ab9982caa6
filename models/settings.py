"""Settings of the engine. The higher layers' settings build on this class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.mock.card_speed import FORM as MOCK_SPEED_FORM
from models.mock.card_speed import INSTANT, PEAK_TFLOPS

ENV_PREFIX = "MOCHI_"
_WITHOUT_REAL_WEIGHTS = frozenset(
    {"mock", "engine", "step_cache", "fake_step_seconds", "mock_speed"}
)
"""Settings that the other engines know."""


def default_data_dir() -> Path:
    """Where all files are kept unless a setting says otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "mochi-server"


class EngineSettings(BaseSettings):
    """Which engine a worker holds. Read once, in a `__main__`, and passed down."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,  # what a compose file passes on from an empty variable
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    mock: bool = Field(
        default=False,
        description="Use mock weights: a tiny Mochi, on any CPU, that makes captioned noise.",
    )
    engine: Literal["mochi", "fake"] = Field(
        default="mochi",
        description="`mochi`, or `fake`: test pictures without torch, to test everything else.",
    )
    weights: str = Field(
        default="genmo/mochi-1-preview",
        min_length=1,
        description=(
            "A folder with Mochi weights in diffusers' layout, a hub id, or `dummy`: "
            "random numbers of full size, to measure speed and memory."
        ),
    )
    revision: str = Field(
        default="",
        pattern="^([0-9a-f]{40})?$",
        description="The hub commit, 40 hex digits; empty: the one that `weights pull` fetched.",
    )
    device: str = Field(
        default="cuda",
        pattern=r"^cuda(:\d+)?$",
        description="The CUDA device of a worker with real weights, like cuda or cuda:1.",
    )
    profile: Literal["auto", "80gb", "48gb", "24gb", "offload"] = Field(
        default="auto",
        description="What stays in GPU memory; `auto` takes the first that fits. All are lossless.",
    )
    precision: Literal["auto", "reference", "bf16"] = Field(
        default="auto",
        description="`reference` as Genmo's: T5 and VAE in float32; `auto` takes it where it fits.",
    )
    attention: Literal["auto", "cudnn", "fa3", "fa4", "flash", "efficient", "math"] = Field(
        default="auto", description="The attention kernel; `auto` takes the card's fastest."
    )
    compile: bool = Field(
        default=True, description="Compile the model for the GPU; kept on disk for later starts."
    )
    lora: str = Field(
        default="",
        description=(
            "LoRA files to fuse in, comma-separated: FILE.safetensors or FILE.safetensors=0.8."
        ),
    )
    fp8: bool = Field(
        default=False,
        description="Lossy: matrix products in 8-bit floats. Needs Ada, Hopper or newer.",
    )
    step_cache: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Lossy: skip blocks when a step changes less than this share; 0 is off.",
    )
    fake_step_seconds: float = Field(
        default=0.05, ge=0, le=60, description="How long a step of the fake engine takes."
    )

    mock_speed: str = Field(
        default=INSTANT,
        pattern=MOCK_SPEED_FORM,
        description=(
            "How long a step takes without real weights: `instant`, or as estimated for a card "
            f"({', '.join(f'`{card}`' for card in PEAK_TFLOPS)}); `h100/60` is sixty times faster."
        ),
    )

    @property
    def ignored(self) -> list[str]:
        """The variables that were set and mean nothing without real weights."""
        if not self.mock and self.engine == "mochi":
            return []
        names = self.model_fields_set & (EngineSettings.model_fields.keys() - _WITHOUT_REAL_WEIGHTS)
        return sorted(ENV_PREFIX + name.upper() for name in names)
