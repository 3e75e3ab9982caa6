"""Settings of the engine. The higher layers' settings build on this class."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "MOCHI_"


class EngineSettings(BaseSettings):
    """Which engine a worker holds. Read once, in a `__main__`, and passed down."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="ignore", allow_inf_nan=False
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
        description="A folder with Mochi weights in diffusers' layout, or a hub id.",
    )
    revision: str = Field(
        default="",
        pattern="^([0-9a-f]{40})?$",
        description="The hub commit to load, 40 hex digits. A hub id needs one; a folder has none.",
    )
    device: str = Field(
        default="cuda",
        pattern=r"^cuda(:\d+)?$",
        description="The CUDA device of a worker with real weights.",
    )
    fake_step_seconds: float = Field(
        default=0.05, ge=0, le=60, description="How long a step of the fake engine takes."
    )
