"""The classifiers of moderation on a GPU judge as they do on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.moderation.build import build_moderation
from models.moderation.settings import ModerationSettings
from tests.support.models.classifiers import write_classifier, write_guard, write_image_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("write", [write_guard, write_classifier])
def test_prompts_and_frames_are_judged_on_the_card(tmp_path: Path, write: object) -> None:
    assert callable(write)
    settings = ModerationSettings(
        moderation_text=str(write(tmp_path / "text")),
        moderation_frames=str(write_image_classifier(tmp_path / "images")),
        moderation_device="cuda",
    )
    moderation = build_moderation(settings, tmp_path)
    text, images = moderation.prompt_judges["text"], moderation.frame_judge
    assert images is not None
    assert text.blocks("a pond") is None
    assert text.blocks("a bomb") in {"Violent", "violence"}
    for grey, category in ((0, None), (255, "nsfw")):
        assert images.blocks(bytes([grey]) * (106 * 60 * 3), 106, 60) == category
