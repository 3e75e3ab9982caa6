"""The checkpoints of a run, kept beside the videos. Trouble with them costs time, and no request.

A request has one, whichever run wrote it last. A run that was taken for dead and wakes up may put
an older one in place of its successor's: both go on to the same frames. What it leaves behind after
the end is swept, as videos are.
"""

from __future__ import annotations

import structlog

from worker.errors import StorageError
from worker.outputs.base import Outputs
from worker.runtime.run import Run

_log = structlog.get_logger()


class RunCheckpoints:
    """`models.engine.Checkpoints` for one run."""

    def __init__(self, outputs: Outputs, run: Run, every: int) -> None:
        self._outputs = outputs
        self._run = run
        self._request_id = run.lease.request_id
        self._can_save = True
        self._is_unused = False
        self.every = every

    def load(self) -> bytes | None:
        """In a first attempt too: one that was given back does not count, and looking is cheap."""
        data = self._outputs.load_checkpoint(self._request_id)
        self._is_unused = data is not None
        return data

    def resumed(self, step: int) -> None:
        """The record shows it with the next beat."""
        self._is_unused = False
        self._run.step = step
        _log.info("checkpoint.resumed", step=step)

    def save(self, data: bytes) -> None:
        """Log either outcome. A store that has refused once is not waited for again."""
        if not self._can_save:
            return
        log = _log.bind(step=self._run.step)
        if self._is_unused:
            self._is_unused = False
            log.warning("checkpoint.passed_over", reason="of another card, profile, or weights")
        try:
            self._outputs.save_checkpoint(self._request_id, data)
        except StorageError as error:
            self._can_save = False
            log.warning("checkpoint.not_saved", reason=str(error))
        else:
            log.info("checkpoint.saved", bytes=len(data))
