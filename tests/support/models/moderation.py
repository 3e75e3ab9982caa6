"""Moderation as settings build it, and models to damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.errors import EngineUnavailableError
from models.moderation.build import build_moderation
from models.moderation.settings import ModerationSettings
from models.moderation.stages import Moderation

WHITE, BLACK = (bytes([value]) * (106 * 60 * 3) for value in (255, 0))


def moderation(**settings: Any) -> Moderation:
    return build_moderation(ModerationSettings(**settings), Path("/nowhere"))


def text_judge(folder: Path, **settings: Any) -> Any:
    return moderation(moderation_text=str(folder), **settings).prompt_judges["text"]


def frame_judge(folder: Path, **settings: Any) -> Any:
    return moderation(moderation_frames=str(folder), **settings).frame_judge


def refusal(**settings: Any) -> str:
    with pytest.raises(EngineUnavailableError) as error:
        moderation(**settings)
    return str(error.value)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def edited(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
