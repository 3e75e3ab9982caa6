"""Pictures of a run that goes on, on their way to who listens."""

from __future__ import annotations

from base64 import b64encode

from models.engine import Picture
from worker.runtime.run import Run


class RunPreviews:
    """`models.engine.Previews` for one run: the heart takes them along, and the run goes on."""

    def __init__(self, run: Run, every: int) -> None:
        self._run = run
        self.every = every

    def show(self, picture: Picture) -> None:
        """In place of the one before, which somebody may not have seen."""
        data = b64encode(picture.data).decode()
        self._run.preview = (picture.step, f"data:{picture.media_type};base64,{data}")
