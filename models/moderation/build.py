"""Builds moderation from the settings. Imports torch only for a classifier."""

from __future__ import annotations

import re
from pathlib import Path

import structlog

from models.errors import EngineUnavailableError, not_installed
from models.moderation.settings import ModerationSettings
from models.moderation.stages import FrameJudge, Moderation, PromptJudge
from models.moderation.terms import TermList
from models.weights import folder as weights

_AT_COMMIT = re.compile(r"(.+)@([0-9a-f]{40})")

_log = structlog.get_logger()


def build_moderation(settings: ModerationSettings, data_dir: Path) -> Moderation:
    """Load the term list and the classifiers, and try each classifier once.

    Call this before the engine is built, which uses the rest of the GPU's memory.

    Args:
        settings: which judges are on.
        data_dir: where pulled models are kept.

    Raises:
        EngineUnavailableError: a file or model is missing or cannot be used; the text has the
            remedy.
    """
    prompt_judges: dict[str, PromptJudge] = {}
    if settings.moderation_terms:
        prompt_judges["terms"] = TermList.read(Path(settings.moderation_terms))
    if settings.moderation_text:
        prompt_judges["text"] = _text_judge(settings, data_dir)
    frame_judge = _frame_judge(settings, data_dir) if settings.moderation_frames else None
    if prompt_judges or frame_judge:
        _log.info("moderation", prompt=list(prompt_judges), frames=frame_judge is not None)
    return Moderation(prompt_judges, frame_judge, settings.moderation_frames_count)


def _text_judge(settings: ModerationSettings, data_dir: Path) -> PromptJudge:
    folder = _find("MOCHI_MODERATION_TEXT", settings.moderation_text, data_dir)
    try:
        from models.moderation.classifiers.text import load  # noqa: PLC0415 (torch takes seconds)
    except ImportError as error:
        raise not_installed(error) from error
    return load(folder, settings)


def _frame_judge(settings: ModerationSettings, data_dir: Path) -> FrameJudge:
    folder = _find("MOCHI_MODERATION_FRAMES", settings.moderation_frames, data_dir)
    try:
        from models.moderation.classifiers.frames import load  # noqa: PLC0415 (as above)
    except ImportError as error:
        raise not_installed(error) from error
    return load(folder, settings)


def _find(variable: str, model: str, data_dir: Path) -> Path:
    pinned = _AT_COMMIT.fullmatch(model)
    name, commit = (pinned[1], pinned[2]) if pinned else (model, "")
    folder = weights.find(name, commit, data_dir)
    if folder is not None:
        return folder
    if weights.is_hub_id(name):
        raise EngineUnavailableError(
            f"{variable}={model} is not in {data_dir / 'weights'}, or not all of it. "
            f"Type: {weights.pull_command(name, commit, data_dir)}"
        )
    raise EngineUnavailableError(
        f"There is no folder {variable}={model}. Set it to a folder, or to a hub id such as "
        "ORG/NAME or ORG/NAME@COMMIT, with the commit's 40 hex digits."
    )
