"""The errors of `models`, and the base class of all errors of the project."""

from __future__ import annotations

from typing import Self


class MochiError(Exception):
    """Base of all errors. The text is a message for the user."""


class InvalidParametersError(MochiError):
    """Parameters are invalid; the text names each field, its rule and the value.

    Attributes:
        parameters: the message of each invalid parameter of the model, by its name.
    """

    def __init__(self, text: str, parameters: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.parameters = parameters

    @classmethod
    def of(cls, parameters: dict[str, str]) -> Self:
        """Of these messages alone."""
        return cls(" ".join(parameters.values()), parameters)


class EngineError(MochiError):
    """A generation ended without a video.

    Attributes:
        code: machine-readable reason, kept in the job record.
        ends_worker: whether the worker can run nothing after this request.
    """

    code = "internal"
    ends_worker = False


class OutOfMemoryError(EngineError):
    """The device has too little memory for this request."""

    code = "out_of_memory"


class ContentBlockedError(EngineError):
    """Moderation blocks the request.

    Attributes:
        category: the reason, as shown to clients.
        stage: `prompt` or `frames`.
    """

    code = "content_blocked"

    def __init__(self, category: str, stage: str) -> None:
        super().__init__(f"Moderation has blocked the {stage}: {category}.")
        self.category = category
        self.stage = stage


class EngineBrokenError(EngineError):
    """The device refuses all further work of this process; a new process may succeed."""


class EncodingError(EngineError):
    """ffmpeg failed to encode the frames."""


class DiskError(EncodingError):
    """The video could not be written to disk, for example because it is full."""

    code = "storage"


class EngineUnavailableError(MochiError):
    """The engine cannot run on this machine; the text has the cause and the remedy."""


INSTALL = "pip install -c constraints.txt"
"""For a clone, as in the documents: the project is on no index."""


TORCH_BUILDS = (
    "\nOn Linux that brings torch's CUDA build, some 5 GB. Without a GPU, first set "
    "PIP_EXTRA_INDEX_URL to the index of torch's CPU wheels."
)


def not_installed(
    missing: ImportError | list[str], extras: str = "'.[worker]'"
) -> EngineUnavailableError:
    """The error for a machine without the libraries of `extras`."""
    what = f"missing: {', '.join(missing)}" if isinstance(missing, list) else missing
    cuda = TORCH_BUILDS if "torch" in str(what) else ""
    return EngineUnavailableError(
        f"The worker's libraries are not installed ({what}). "
        f"In a clone of the project, type: {INSTALL} {extras}{cuda}"
    )


class WeightsError(MochiError):
    """Weights are missing, damaged or cannot be downloaded; the text has the remedy."""
