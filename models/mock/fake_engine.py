"""The light mock: an engine without a model and torch, which draws its videos."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

from models.engine import (
    Checkpoints,
    Clip,
    OnStep,
    Picture,
    Previews,
    Traits,
    is_checkpoint_due,
)
from models.mock.scene import Scene, comment_of
from models.request.params import GenerateParams


class FakeEngine:
    """Sleeps for each step, then draws the video; see `Scene`."""

    def __init__(
        self,
        step_seconds: float,
        sleep: Callable[[float], object] = time.sleep,
        loras: Iterable[str] = (),
    ) -> None:
        """Make an engine.

        Args:
            step_seconds: how long a step takes, 0 or more.
            sleep: waits for as many seconds.
            loras: names of those that requests may name. Videos show the names.
        """
        self._step_seconds = step_seconds
        self._sleep = sleep
        self._loras = dict.fromkeys(loras, "light mock")

    @property
    def traits(self) -> Traits:
        """See `Engine`."""
        return Traits("light mock", "CPU", "none", is_mock=True, loras=self._loras)

    @property
    def origin(self) -> str:
        """See `Engine`: the build is all that its pictures depend on."""
        return ""

    @property
    def encode_ahead(self) -> None:
        """It has no text encoder."""

    def comment(self, params: GenerateParams) -> str:
        """See `Engine`."""
        return comment_of(params, self.traits.model)

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        """See `Engine`."""
        self.traits.check_loras(params)
        last = stop_after or params.steps
        scene = Scene(params, self.traits.model, "drawn without a model", stop_after)
        on_step(0, last)
        first = (_resume(params, checkpoints, last) if checkpoints else 0) + 1
        for step in range(first, last + 1):
            self._sleep(self._step_seconds)
            on_step(step, last)
            if checkpoints and is_checkpoint_due(step, params.steps, checkpoints.every, stop_after):
                checkpoints.save(_state(params, step))
            if previews and step % previews.every == 0 and step < last:
                previews.show(Picture(step, "image/jpeg", scene.preview(step)))
        return scene.clip()


def _state(params: GenerateParams, step: int) -> bytes:
    """A checkpoint: a hash of request and step, which `_resume` finds again by comparing."""
    return hashlib.sha256(f"{step} {params.model_dump_json()}".encode()).digest()


def _resume(params: GenerateParams, checkpoints: Checkpoints, last: int) -> int:
    """Steps that an earlier run has done, fewer than `last`."""
    kept = checkpoints.load()
    done = (step for step in range(1, last) if _state(params, step) == kept)
    step = next(done, 0)
    if step:
        checkpoints.resumed(step)
    return step
