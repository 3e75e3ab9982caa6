"""Settings of the job system, on top of the engine's."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from models.settings import EngineSettings, default_data_dir
from worker.address import AddressError, parse


class WorkerSettings(EngineSettings):
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
            "empty: that of `mochi-server up`."
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
                parse(url)
            except AddressError as error:
                raise PydanticCustomError("redis_url", "{why}", {"why": str(error)}) from None
        return url

    @property
    def outputs_dir(self) -> Path:
        """Where the videos are."""
        return self.data_dir / "outputs"
