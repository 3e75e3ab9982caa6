"""Everything that can go wrong in the job system."""

from __future__ import annotations

from models.errors import MochiError


class JobError(MochiError):
    """Base of the job system's errors."""


class BrokerUnavailableError(JobError):
    """Redis or Valkey does not answer, or refuses to write."""

    @property
    def reason(self) -> str:
        """What the client library says: for the log and for operators, not for HTTP clients."""
        cause = self.__cause__
        return str(cause) or type(cause).__name__ if cause else str(self)

    @property
    def advice(self) -> str:
        """For who has set up the broker."""
        return f"{self} Does it run, and is MOCHI_REDIS_URL right? ({self.reason})"


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


class IdempotencyConflictError(JobError):
    """The idempotency key belongs to a request with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"This Idempotency-Key made request {request_id}, with another body. Send the same to "
            "get that one, or another key to make a new one."
        )


class StorageError(JobError):
    """A video could not be kept, or not be read again."""


class OutputsUnusableError(JobError):
    """Videos cannot be kept where the settings say; to try again does not help."""
