"""Settings of moderation, on top of the engine's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.settings import EngineSettings


class ModerationSettings(EngineSettings):
    """What judges prompts and frames, and how strictly."""

    moderation_terms: str = Field(
        default="",
        description="A file of words and phrases that no prompt may have; empty: off.",
    )
    moderation_text: str = Field(
        default="",
        description=(
            "What judges prompts: a folder with a guard or a text classifier, or a hub id, "
            "like Qwen/Qwen3Guard-Gen-0.6B or ORG/NAME@COMMIT; empty: off."
        ),
    )
    moderation_text_threshold: float = Field(
        default=0.5, gt=0, le=1, description="A prompt of this probability of harm is blocked."
    )
    moderation_frames: str = Field(
        default="",
        description=(
            "What judges frames: a folder with an image classifier, or a hub id, "
            "like Falconsai/nsfw_image_detection; empty: off."
        ),
    )
    moderation_frames_threshold: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="A video with a frame of this probability of harm is blocked.",
    )
    moderation_frames_count: int = Field(
        default=8,
        ge=2,
        le=160,
        description="Frames of a video that are judged: the first, the last, and evenly between.",
    )
    moderation_harmless: str = Field(
        default="safe,normal,neutral,sfw",
        description="Labels of the classifiers that are no harm, comma-separated; all others are.",
    )
    moderation_device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where they work; `cuda` is the card of MOCHI_DEVICE."
    )

    @property
    def harmless_labels(self) -> frozenset[str]:
        """Without regard to case."""
        names = (name.strip() for name in self.moderation_harmless.split(","))
        return frozenset(name.casefold() for name in names if name)
