"""Everything that can go wrong in `models`, and the base of every error of the project."""

from __future__ import annotations


class MochiError(Exception):
    """Base of all our errors. Its text is written for the user."""


class InvalidParametersError(MochiError):
    """The parameters break a rule; the text names the field, the rule and what came."""


class EngineError(MochiError):
    """A generation ended without a video.

    Attributes:
        code: machine-readable reason, kept in the job record.
    """

    code = "internal"


class OutOfMemoryError(EngineError):
    """The device has too little memory for this request."""

    code = "out_of_memory"


class ContentBlockedError(EngineError):
    """Moderation does not let the request pass.

    Attributes:
        category: what it was blocked for.
        stage: `prompt` or `frames`.
    """

    code = "content_blocked"

    def __init__(self, category: str, stage: str) -> None:
        super().__init__(f"Moderation has blocked the {stage}: {category}.")
        self.category = category
        self.stage = stage


class EngineBrokenError(EngineError):
    """The device refuses all further work of this process: only a new process helps."""


class EncodingError(EngineError):
    """ffmpeg did not turn the frames into a video."""


class DiskError(EncodingError):
    """The disk did not take the video: it is full, say."""

    code = "storage"


class EngineUnavailableError(MochiError):
    """The engine cannot be built here; the text says what is missing and what to type."""


def not_installed(error: ImportError) -> EngineUnavailableError:
    """What to raise where the extra `worker` was not installed."""
    return EngineUnavailableError(
        f"The worker's libraries are not installed ({error}). "
        "Type: pip install 'mochi-server[worker]'"
    )


class WeightsError(MochiError):
    """Weights are absent, damaged or cannot be fetched; the text says what to type."""
