"""Settings of the job system, on top of the engine's."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict
from redis.connection import parse_url

from models.settings import EngineSettings, default_data_dir


class WorkerSettings(EngineSettings):
    """Where jobs and videos are kept and how long anything may take."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # a URL may hold a password

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder for videos, weights, compiled code and the embedded broker.",
    )
    redis_url: str = Field(
        default="",
        pattern=r"^((redis|rediss|unix)://.+)?$",
        description="Redis or Valkey, like redis://host:6379/0; empty: that of `mochi-server up`.",
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
    stall_seconds: float = Field(
        default=600, gt=0, description="A worker without progress for so long ends itself."
    )

    @field_validator("redis_url")
    @classmethod
    def _can_be_parsed(cls, url: str) -> str:
        if url:
            try:
                parse_url(url)  # type: ignore[no-untyped-call]
            except ValueError:
                # Its text may quote a part of the password.
                raise PydanticCustomError(
                    "redis_url", "The port or an option in it is not one"
                ) from None
        return url

    @property
    def outputs_dir(self) -> Path:
        """Where the videos are, or their drafts when they are kept elsewhere."""
        return self.data_dir / "outputs"
