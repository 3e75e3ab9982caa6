"""The engine of a group of cards: each process has all of the model, and a part of the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import torch

from models.engine import Checkpoints, Clip, EncodeAhead, OnStep, Previews, Traits
from models.errors import EngineBrokenError, OutOfMemoryError
from models.group import FULL, LOADED, OUT_OF_MEMORY, Abandoned, Follower, Leader, Task
from models.mochi.engine import MochiEngine
from models.request.params import GenerateParams


class GroupEngine:
    """An `Engine` over the cards of a group, in the process of rank 0.

    A rank that fails during an exchange leaves the others waiting in it. So only an exception of
    `on_step`, which all ranks act on at the same step, leaves the group usable. After any other
    one the process must end, and the followers end with it.
    """

    def __init__(self, engine: MochiEngine, leader: Leader) -> None:
        """Wait until all ranks have loaded the model."""
        self._engine = engine
        self._leader = leader
        self._agreed: BaseException | None = None
        engine.ranks.agree = leader.agree
        leader.wait_until_loaded()

    @property
    def traits(self) -> Traits:
        return replace(self._engine.traits, gpus=self._leader.size)

    @property
    def origin(self) -> str:
        return self._engine.origin

    @property
    def encode_ahead(self) -> EncodeAhead | None:
        """Of rank 0, which gives the others what it has encoded when their video begins."""
        return self._engine.encode_ahead

    def comment(self, _params: GenerateParams) -> str:
        """See `Engine`: none."""
        return ""

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        """See `Engine`, and `MochiEngine.generate`."""

        def agree(step: int, steps: int) -> None:
            try:
                on_step(step, steps)
            except BaseException as error:
                self._agreed = error
                raise
            self._leader.agree()

        with self._whole():
            self._leader.ask(Task(params, stop_after))
            clip = self._engine.generate(params, agree, checkpoints, previews, stop_after)
        return replace(clip, frames=self._drawn(clip.frames))

    def _drawn(self, frames: Iterator[bytes]) -> Iterator[bytes]:
        with self._whole():
            yield from frames

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Mark exceptions of others than `on_step`: after them the process must end."""
        try:
            yield
        except Exception as error:
            if error is self._agreed:
                raise
            if not isinstance(error, OutOfMemoryError) and not self._leader.is_full:
                raise EngineBrokenError("A card of the group has failed.") from error
            full = OutOfMemoryError(FULL)
            full.ends_worker = True
            raise full from error
        finally:
            self._agreed = None  # it holds its traceback, with tensors of this video


def follow(engine: MochiEngine, follower: Follower) -> NoReturn:
    """Do this rank's part of each video, until the process is ended.

    Raises:
        OutOfMemoryError, EngineBrokenError: the process must end.
    """
    engine.ranks.agree = follower.agree
    follower.report(LOADED)
    while True:
        task = follower.next_task()
        try:
            engine.follow(task.params, lambda _step, _steps: follower.agree(), task.stop_after)
        except Abandoned:
            continue
        except torch.OutOfMemoryError:
            follower.report(OUT_OF_MEMORY)
            raise
