"""Passes preview pictures of a run to the heartbeat thread, which sends them to the broker."""

from __future__ import annotations

from base64 import b64encode

from models.engine import Picture
from worker.runtime.run import Run


class RunPreviews:
    """`models.engine.Previews` for one run."""

    def __init__(self, run: Run, every: int) -> None:
        self._run = run
        self.every = every

    def show(self, picture: Picture) -> None:
        """Replaces the picture before, sent or not; the run does not wait for the broker."""
        data = b64encode(picture.data).decode()
        self._run.preview = (picture.step, f"data:{picture.media_type};base64,{data}")
