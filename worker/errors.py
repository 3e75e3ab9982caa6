"""Everything that can go wrong in the job system."""

from __future__ import annotations

from models.errors import MochiError


class JobError(MochiError):
    """Base of the job system's errors."""


class BrokerUnavailableError(JobError):
    """Redis or Valkey does not answer, or refuses to write."""


class BrokerStartError(JobError):
    """The embedded broker cannot be started."""


class NoWorkerError(JobError):
    """No live worker has the model loaded."""


class QueueFullError(JobError):
    """As many requests wait as may wait."""


class RequestNotFoundError(JobError):
    """No such request: never made, expired, or made with another key."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Request {request_id} not found")


class StorageError(JobError):
    """A video could not be kept, or not be read again."""


class OutputsUnusableError(JobError):
    """Videos cannot be kept where the settings say; to try again does not help."""
