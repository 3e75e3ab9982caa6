"""Judges frames by an image classifier such as Falconsai/nsfw_image_detection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from models.moderation.classifiers.loading import (
    SAFELY,
    Source,
    choose_device,
    inference,
    probabilities,
)
from models.moderation.labels import Labels
from models.moderation.settings import ModerationSettings
from models.request.params import HEIGHT, WIDTH

ARCHITECTURE = "ForImageClassification"


class ImageClassifier:
    """A `FrameJudge` over an image classifier and its image processor."""

    def __init__(self, model: Any, processor: Any, labels: Labels) -> None:  # noqa: ANN401 (of any class)
        self._model = model
        self._processor = processor
        self._labels = labels

    def blocks(self, frame: bytes, width: int, height: int) -> str | None:
        picture = Image.frombytes("RGB", (width, height), frame)
        with inference(self._model.device):
            pixels: Mapping[str, torch.Tensor] = self._processor(picture, return_tensors="pt")
            read = pixels["pixel_values"].to(self._model.device, self._model.dtype)
            logits = self._model(pixel_values=read).logits[0]
            return self._labels.blocks(probabilities(logits, self._labels))


def load(folder: Path, settings: ModerationSettings) -> ImageClassifier:
    """Load a folder, and try it once.

    Raises:
        EngineUnavailableError: it cannot be used; the text says why.
    """
    device = choose_device(settings)
    source = Source("MOCHI_MODERATION_FRAMES", folder)
    source.check("config.json", "preprocessor_config.json")
    architecture = source.architecture()
    if not architecture.endswith(ARCHITECTURE):
        raise source.refusal(f"it is a {architecture}, and an image classifier is needed")
    with source.translate_errors():
        # Always by PIL, so that what else is installed does not change the verdict.
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, backend="pil", **SAFELY
        )
    model = source.read(AutoModelForImageClassification, device)
    labels = source.labels(model, settings.harmless_labels, settings.moderation_frames_threshold)
    judge = ImageClassifier(model, processor, labels)
    source.try_once(lambda: judge.blocks(bytes(WIDTH * HEIGHT * 3), WIDTH, HEIGHT))
    return judge
