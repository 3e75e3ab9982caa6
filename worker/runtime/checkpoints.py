"""Checkpoints of a run, stored beside the videos. A failure costs time, never a request.

A request has one checkpoint, written by its latest save. A run that lost its lease may replace its
successor's checkpoint by an older one: both lead to the same frames. The end of a request removes
its checkpoint, except that of a draft: it lives as long as the draft's record, and the request that
finishes the draft begins there. Checkpoints that stay behind are swept, as videos are.
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
    """`models.engine.Checkpoints` for one run. `draft_of`: the id of the draft that it finishes."""

    outputs: Outputs
    run: Run
    every: int
    draft_of: str = ""
    _can_save: bool = True
    _is_unused: bool = False

    def load(self) -> bytes | None:
        """Also looks on a first attempt: a requeued run does not count as one."""
        data = self.outputs.load_checkpoint(self.run.lease.request_id)
        if data is None and self.draft_of:
            data = self.outputs.load_checkpoint(self.draft_of)
            if data is None:
                _log.warning("checkpoint.missing", draft_id=self.draft_of)
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
        self.warn_if_unused()
        log = _log.bind(step=self.run.step)
        try:
            self.outputs.save_checkpoint(self.run.lease.request_id, data)
        except StorageError as error:
            self._can_save = False
            log.warning("checkpoint.not_saved", reason=str(error))
        else:
            log.info("checkpoint.saved", bytes=len(data))

    def warn_if_unused(self) -> None:
        """Log that the run has begun at the start though there was a checkpoint."""
        if self._is_unused:
            self._is_unused = False
            _log.warning(
                "checkpoint.passed_over",
                step=self.run.step,
                reason="of another card, profile, or weights, or of the end of a draft",
            )
