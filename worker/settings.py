"""Settings of the job system, on top of those of engine and moderation."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from models.moderation.settings import ModerationSettings
from models.settings import default_data_dir
from worker.broker.url import AddressError, parse


class WorkerSettings(ModerationSettings):
    """Where jobs and videos are kept and how long anything may take."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # a URL may hold a password

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder for videos, weights, compiled code and the embedded broker.",
    )
    redis_url: str = Field(
        default="",
        pattern=r"^((rediss?|sentinels?|unix)://.+)?$",
        description=(
            "Redis or Valkey, like redis://host:6379/0 or sentinel://host1:26379,host2:26379/NAME; "
            "empty: the one that `mochi-server up` runs. A gateway or worker by itself needs it."
        ),
    )
    outputs: str = Field(
        default="",
        # Segments that are no way up.
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?)?$",
        description=(
            "Where videos are kept, like s3://bucket/prefix; "
            "empty: the folder `outputs` in the data folder."
        ),
    )
    retention_seconds: float = Field(
        default=3600, gt=0, description="How long a finished request and its video are kept."
    )
    lease_seconds: float = Field(
        default=10, ge=2, description="A worker silent for so long is taken for dead."
    )
    run_seconds: float = Field(
        default=3600, gt=0, description="A run that takes longer ends FAILED."
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        description="How long running requests may go on when a process is told to stop.",
    )
    stall_seconds: float = Field(
        default=600, gt=0, description="A worker without progress for so long ends itself."
    )
    checkpoint_steps: int = Field(
        default=0,
        ge=0,
        description=(
            "Keep a run's latents every so many steps, for another attempt to go on from; 0 is off."
        ),
    )

    preview_steps: int = Field(
        default=5,
        ge=0,
        description=(
            "Show who listens to events a picture every so many steps; 0 is off, as it is where "
            "frames are moderated."
        ),
    )

    @field_validator("redis_url")
    @classmethod
    def _can_be_parsed(cls, url: str) -> str:
        if url:
            try:
                parse(url)
            except AddressError as error:
                raise PydanticCustomError("redis_url", "{why}", {"why": str(error)}) from None
        return url

    @field_validator("checkpoint_steps")
    @classmethod
    def _goes_without_step_cache(cls, steps: int, info: ValidationInfo) -> int:
        if steps and info.data.get("step_cache"):
            # What the cache knows of earlier steps is not kept, so the frames would be others.
            raise PydanticCustomError(
                "checkpoint_steps", "It does not go with MOCHI_STEP_CACHE: set one of the two to 0"
            )
        return steps

    @property
    def outputs_dir(self) -> Path:
        """Where the videos are, or their drafts when they are kept elsewhere."""
        return self.data_dir / "outputs"
