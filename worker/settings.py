"""Settings of workers, added to those of the engine and of moderation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from models.moderation.settings import ModerationSettings
from models.settings import Folder, PathOrName, default_data_dir


class WorkerSettings(ModerationSettings):
    """Where jobs and videos are stored, and the time limits."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # a URL may hold a password

    data_dir: Folder = Field(
        default_factory=default_data_dir,
        description="Folder for videos, weights, compiled code and the embedded broker.",
    )
    redis_url: str = Field(
        default="",
        pattern=r"^((rediss?|valkeys?|sentinels?|unix)://.+)?$",
        description=(
            "Redis or Valkey, like redis://host:6379/0 or sentinel://host1:26379,host2:26379/NAME; "
            "empty: the broker embedded in `mochi-server up`. `gateway` and `worker` require it."
        ),
    )
    valkey: PathOrName = Field(
        default="",
        description=(
            "The program of the embedded broker, Valkey or Redis 7.2 or later: a path, or a name "
            "on PATH. Empty: `valkey-server` or `redis-server` on PATH, else that of the extra "
            "`valkey`."
        ),
    )
    outputs: str = Field(
        default="",
        # No segment is `.` or `..`.
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?)?$",
        description=(
            "Where videos are stored, like s3://bucket/prefix; "
            "empty: the folder `outputs` in the data folder."
        ),
    )
    min_free_mib: int = Field(
        default=256,
        ge=0,
        description=(
            "Requests wait while the disk of the data folder has less than this free, in MiB; 0 is "
            "off. A run writes up to 64, with its checkpoints, and the embedded broker its log."
        ),
    )
    retention_seconds: float = Field(
        default=3600, gt=0, description="How long a finished request and its video are kept."
    )
    lease_seconds: float = Field(
        default=10, ge=2, description="A worker without a heartbeat for this long counts as dead."
    )
    run_seconds: float = Field(
        default=3600, gt=0, description="Longest run; a longer one ends FAILED."
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        description="How long running requests may continue after a process is told to stop.",
    )
    stall_seconds: float = Field(
        default=600, gt=0, description="A worker without progress for this long exits."
    )
    alive_file: PathOrName = Field(
        default="",
        description=(
            "File that a worker touches with each heartbeat, also while the broker is away: for "
            "health checks of containers. Of several workers, their supervisor touches it while "
            "all serve that it has not left down. Empty: none."
        ),
    )
    checkpoint_steps: int = Field(
        default=0,
        ge=0,
        description=(
            "Save a run's latents every this many steps, so that a retry resumes there; 0 is off."
        ),
    )
    preview_steps: int = Field(
        default=5,
        ge=0,
        description=(
            "Send a preview picture to event streams every this many steps; 0 is off. Always off "
            "while frames are moderated."
        ),
    )

    provenance: Literal["auto", "c2pa", "metadata", "off"] = Field(
        default="auto",
        description=(
            "How videos are marked as made by AI: `c2pa` signs each, `metadata` only writes IPTC's "
            "term into it, `off` does neither; `auto` signs where the extra `provenance` is "
            "installed, else as `metadata`."
        ),
    )
    c2pa_cert: PathOrName = Field(
        default="",
        description=(
            "PEM certificate that signs videos, with its chain; empty: one that the first start "
            "makes in the data folder."
        ),
    )
    c2pa_key: PathOrName = Field(
        default="",
        validate_default=True,
        description="PEM private key of the certificate, without a passphrase.",
    )
    c2pa_prompt: bool = Field(
        default=False, description="Put the prompt into the signed manifest, for all to read."
    )

    @field_validator("redis_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if url:
            from worker.broker.url import AddressError, parse  # noqa: PLC0415 (loads redis)

            try:
                parse(url)
            except AddressError as error:
                raise PydanticCustomError("redis_url", "{why}", {"why": str(error)}) from None
        return url

    @field_validator("checkpoint_steps")
    @classmethod
    def _excludes_step_cache(cls, steps: int, info: ValidationInfo) -> int:
        if steps and info.data.get("step_cache"):
            # Checkpoints leave out the cache's state, so a resumed run would give other frames.
            raise PydanticCustomError(
                "checkpoint_steps",
                "It cannot be used with MOCHI_STEP_CACHE: set one of the two to 0",
            )
        return steps

    @field_validator("c2pa_key")
    @classmethod
    def _goes_with_c2pa_cert(cls, key: str, info: ValidationInfo) -> str:
        if bool(key) != bool(info.data.get("c2pa_cert")):
            raise PydanticCustomError(
                "c2pa_key", "Set both MOCHI_C2PA_CERT and MOCHI_C2PA_KEY, or neither"
            )
        return key

    @property
    def outputs_dir(self) -> Path:
        """The folder of the videos; when `outputs` is a bucket, of unfinished ones only."""
        return self.data_dir / "outputs"
