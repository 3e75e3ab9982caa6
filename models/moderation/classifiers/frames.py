"""Frames before an image classifier, such as Falconsai/nsfw_image_detection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from models.moderation.classifiers.reading import (
    SAFELY,
    Source,
    judging,
    prepare,
    probabilities,
)
from models.moderation.labels import Labels
from models.moderation.settings import ModerationSettings
from models.params import HEIGHT, WIDTH

ARCHITECTURE = "ForImageClassification"


class ImageClassifier:
    """`models.moderation.stages.FrameJudge` of a classifier."""

    def __init__(self, model: Any, processor: Any, labels: Labels) -> None:  # noqa: ANN401
        """Take what transformers loaded.

        Args:
            model: an image classifier, in its place.
            processor: turns pictures of any size into what it reads.
            labels: of the model.
        """
        self._model = model
        self._processor = processor
        self._labels = labels

    def blocks(self, frame: bytes, width: int, height: int) -> str | None:
        """See `FrameJudge`."""
        picture = Image.frombytes("RGB", (width, height), frame)
        with judging(self._model.device):
            pixels: Mapping[str, torch.Tensor] = self._processor(picture, return_tensors="pt")
            read = pixels["pixel_values"].to(self._model.device, self._model.dtype)
            logits = self._model(pixel_values=read).logits[0]
            return self._labels.blocks(probabilities(logits, self._labels))


def load(folder: Path, settings: ModerationSettings) -> ImageClassifier:
    """Load a folder and try it.

    Raises:
        EngineUnavailableError: it is of no use here; the text says why.
    """
    device = prepare(settings)
    source = Source("MOCHI_MODERATION_FRAMES", folder)
    source.check("config.json", "preprocessor_config.json")
    architecture = source.architecture()
    if not architecture.endswith(ARCHITECTURE):
        raise source.refusal(f"it is a {architecture}, and an image classifier is needed")
    with source.translate_errors():
        # Whatever else is installed, PIL resizes: the same picture is judged in the same way.
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, backend="pil", **SAFELY
        )
    model = source.read(AutoModelForImageClassification, device)
    labels = source.labels(model, settings.harmless_labels, settings.moderation_frames_threshold)
    judge = ImageClassifier(model, processor, labels)
    source.trial(lambda: judge.blocks(bytes(WIDTH * HEIGHT * 3), WIDTH, HEIGHT))
    return judge
