"""A worker without its process, and engines that call a test at each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from redis import Redis

from models.engine import Checkpoints, Clip, EnergyCounter, Engine, OnStep, Previews
from models.mock.card_speed import AT_ONCE
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from models.request.params import GenerateParams
from tests.support.jobs import end_lease, find, live, pop, submit
from worker.broker.health import BrokerLog
from worker.job import Job
from worker.outputs.local import LocalOutputs
from worker.process.shutdown import Stop
from worker.provenance.marker import Marker
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.runtime.runner import Runner
from worker.store import keyspace
from worker.store.submits import NOTHING
from worker.store.worker_side import Recovery, WorkerStore


class Hooked(FakeEngine):
    """Calls `at_step` instead of sleeping, and `at_end` after the last frame."""

    def __init__(
        self,
        at_step: Callable[[int], object] = lambda _: None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(0, self._count)
        self.steps = 0
        self._at_step = at_step
        self._at_end = at_end

    def _count(self, _seconds: float) -> None:
        self.steps += 1
        self._at_step(self.steps)

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        clip = super().generate(params, on_step, checkpoints, previews, stop_after)
        return replace(clip, frames=self._frames(clip))

    def _frames(self, clip: Clip) -> Iterator[bytes]:
        yield from clip.frames
        self._at_end()


class Stubborn(Hooked):
    """Goes on whatever a step raises, as code with a bare `except Exception` does."""

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        def swallow(step: int, total: int) -> None:
            try:
                on_step(step, total)
            except Exception:  # noqa: BLE001
                time.sleep(0)

        return super().generate(params, swallow, checkpoints, previews, stop_after)


class Desk:
    """A worker without its process."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.redis, self.url = redis, url
        self.folder = folder
        self.outputs = LocalOutputs(folder)
        self.store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
        self.moderation = Moderation()
        self.checkpoint_steps = self.preview_steps = 0
        self.speed = AT_ONCE
        self.marker: Marker | None = None
        self.energy: EnergyCounter | None = None
        self.stop = Stop()
        reconciler = Reconciler(self.store, lease_seconds=10)
        self.heartbeat = Heartbeat(
            live("ann"), self.store, reconciler, BrokerLog(url), stall_seconds=60, stop=self.stop
        )

    def runner(self, engine: Engine, run_seconds: float = 60) -> Runner:
        return Runner(
            worker="ann",
            engine=engine,
            store=self.store,
            outputs=self.outputs,
            heartbeat=self.heartbeat,
            moderation=self.moderation,
            run_seconds=run_seconds,
            checkpoint_steps=self.checkpoint_steps,
            preview_steps=self.preview_steps,
            speed=self.speed,
            marker=self.marker,
            energy=self.energy,
            stop=self.stop,
        )

    def run(
        self,
        engine: Engine,
        scenario: str = "",
        *,
        prompt: str = "a pond",
        run_seconds: float = 60,
        record: Mapping[str, str] = NOTHING,
    ) -> Job:
        """A new request, with fields of its record, after its run."""
        request_id = submit(self.url, prompt, scenario=scenario, record=record, frames=3)
        assert pop(self.redis) == request_id
        self.runner(engine, run_seconds).run(request_id)
        return find(self.url, request_id)

    def take_away(self) -> Recovery | None:
        """Take the worker for dead, and its request from it."""
        (request_id,) = self.redis.zrange(keyspace.LEASES, 0, -1)
        end_lease(self.redis, str(request_id))
        return self.store.reap(str(request_id))

    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
