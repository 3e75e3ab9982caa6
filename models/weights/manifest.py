"""What a folder of weights consists of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WeightsFile(BaseModel):
    """One file of a commit."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0, description="In bytes.")
    checksum: str = Field(
        pattern="^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})$",
        description="Of the content; of a small file the hub only has git's blob id.",
    )


class Manifest(BaseModel):
    """What a complete folder holds, and of which commit."""

    model_config = ConfigDict(frozen=True)

    hub_id: str
    commit: str
    files: dict[str, WeightsFile]
