"""Checkpoints of a run, stored beside the videos. A failure costs time, never a request.

A request has one checkpoint, written by its latest save. A run that lost its lease may replace its
successor's checkpoint by an older one: both lead to the same frames. Checkpoints that stay behind
are swept, as videos are.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from worker.errors import StorageError
from worker.outputs.base import Outputs
from worker.runtime.run import Run

_log = structlog.get_logger()


@dataclass
class RunCheckpoints:
    """`models.engine.Checkpoints` for one run."""

    outputs: Outputs
    run: Run
    every: int
    _can_save: bool = True
    _is_unused: bool = False

    def load(self) -> bytes | None:
        """Also looks on a first attempt: a requeued run does not count as one."""
        data = self.outputs.load_checkpoint(self.run.lease.request_id)
        self._is_unused = data is not None
        return data

    def resumed(self, step: int) -> None:
        self._is_unused = False
        self.run.step = step  # the next heartbeat writes it into the record
        _log.info("checkpoint.resumed", step=step)

    def save(self, data: bytes) -> None:
        """Store and log. After one failure, the run saves no more."""
        if not self._can_save:
            return
        log = _log.bind(step=self.run.step)
        if self._is_unused:
            self._is_unused = False
            log.warning("checkpoint.passed_over", reason="of another card, profile, or weights")
        try:
            self.outputs.save_checkpoint(self.run.lease.request_id, data)
        except StorageError as error:
            self._can_save = False
            log.warning("checkpoint.not_saved", reason=str(error))
        else:
            log.info("checkpoint.saved", bytes=len(data))
