"""The checkpoints of a run, kept beside the videos. Trouble with them costs time, and no request.

A request has one, whichever run wrote it last. A run that was taken for dead and wakes up may put
an older one in place of its successor's: both go on to the same frames. What it leaves behind after
the end is swept, as videos are.
"""

from __future__ import annotations

import structlog

from worker.errors import StorageError
from worker.outputs import LocalOutputs
from worker.run import Run

_log = structlog.get_logger()


class RunCheckpoints:
    """`models.engine.Checkpoints` for one run."""

    def __init__(self, outputs: LocalOutputs, run: Run, every: int) -> None:
        self._outputs = outputs
        self._run = run
        self._request_id = run.lease.request_id
        self.every = every

    def load(self) -> bytes | None:
        """In a first attempt too: one that was given back does not count, and looking is cheap."""
        try:
            return self._outputs.load_checkpoint(self._request_id)
        except StorageError as error:
            _log.warning("checkpoint.not_loaded", request_id=self._request_id, reason=str(error))
            return None

    def resumed(self, step: int) -> None:
        """The record shows it with the next beat."""
        self._run.step = step
        _log.info("checkpoint.resumed", request_id=self._request_id, step=step)

    def save(self, data: bytes) -> None:
        """Log either outcome."""
        request_id, step = self._request_id, self._run.step
        try:
            self._outputs.save_checkpoint(request_id, data)
        except StorageError as error:
            _log.warning(
                "checkpoint.not_saved", request_id=request_id, step=step, reason=str(error)
            )
        else:
            _log.info("checkpoint.saved", request_id=request_id, step=step, bytes=len(data))


def forget(outputs: LocalOutputs, request_id: str) -> None:
    """Remove the checkpoint of a request that has ended."""
    try:
        outputs.remove_checkpoint(request_id)
    except StorageError as error:
        _log.warning("checkpoint.not_removed", request_id=request_id, reason=str(error))
