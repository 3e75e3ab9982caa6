"""Settings of moderation, on top of those of the engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.settings import EngineSettings, PathOrName


class ModerationSettings(EngineSettings):
    """Classifiers of prompts and frames, and their thresholds."""

    moderation_terms: PathOrName = Field(
        default="",
        description="A file of words and phrases that are blocked in prompts; empty: off.",
    )
    moderation_text: PathOrName = Field(
        default="",
        description=(
            "Classifier of prompts: a folder with a guard or text classifier, or a hub id, "
            "like Qwen/Qwen3Guard-Gen-0.6B or ORG/NAME@COMMIT; empty: off."
        ),
    )
    moderation_text_threshold: float = Field(
        default=0.5, gt=0, le=1, description="Probability of harm from which a prompt is blocked."
    )
    moderation_frames: PathOrName = Field(
        default="",
        description=(
            "Classifier of frames: a folder with an image classifier, or a hub id, "
            "like Falconsai/nsfw_image_detection; empty: off."
        ),
    )
    moderation_frames_threshold: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Probability of harm of one frame from which a video is blocked.",
    )
    moderation_frames_count: int = Field(
        default=8,
        ge=2,
        le=160,
        description="Frames classified in each video: the first, the last, and evenly between.",
    )
    moderation_harmless: str = Field(
        default="safe,normal,neutral,sfw",
        description="Labels that mean no harm, comma-separated; all other labels mean harm.",
    )
    moderation_device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where the classifiers run; `cuda` is the GPU of MOCHI_DEVICE."
    )

    @property
    def harmless_labels(self) -> frozenset[str]:
        names = (name.strip() for name in self.moderation_harmless.split(","))
        return frozenset(name.casefold() for name in names if name)
