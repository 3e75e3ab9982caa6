"""Many workers in few processes: each is all that `worker.__main__` puts together, in threads.

Real are RQ's loop, runner, heartbeat, reconciler, sweeper, mark reader, outputs and the store, with
connections of their own. Not real: a process for each, and the video. The engine is the light mock
at the estimated speed of a card, and what it would draw and encode is written as plain bytes.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from typing_extensions import override

from models.engine import Clip
from models.mock.card_speed import MockSpeed
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from worker.broker.connection import connect_briefly, connect_worker
from worker.broker.health import BrokerLog
from worker.job import Job
from worker.outputs.factory import open_outputs
from worker.process.shutdown import Stop
from worker.runtime.background import read_mark, start_mark_reader, start_sweeper
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.runtime.rq_worker import EngineWorker
from worker.runtime.runner import Runner
from worker.settings import WorkerSettings
from worker.store.presence import LiveWorker, new_worker_name
from worker.store.worker_side import WorkerStore

MOST_IN_PROCESS = 64
VIDEO_BYTES = 500_000
"""About those of the default video."""
CONNECT_SECONDS = 0.02
"""Between the starts of two workers of a process."""

Times = defaultdict[str, list[float]]
"""Seconds of calls to the broker, by the script's name; `pop` is RQ's whole pop."""


class Fleet:
    """The processes of the workers."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []

    def start(self, count: int, settings: dict[str, str], stagger_seconds: float) -> None:
        """Start `count` workers.

        Args:
            count: how many.
            settings: of `WorkerSettings`.
            stagger_seconds: over which the first pops spread, so that runs do not end all at once.
        """
        context = multiprocessing.get_context("spawn")
        sizes = [MOST_IN_PROCESS] * (count // MOST_IN_PROCESS)
        if count % MOST_IN_PROCESS:
            sizes.append(count % MOST_IN_PROCESS)
        for size in sizes:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_run_workers, args=(size, settings, stagger_seconds, theirs), daemon=True
            )
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()  # all its workers have their connections

    def take_times(self) -> Times:
        """The times since the last call."""
        merged: Times = defaultdict(list)
        for connection in self._connections:
            connection.send(None)
        for connection in self._connections:
            for name, seconds in connection.recv().items():
                merged[name] += seconds
        return merged

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def fleet() -> Iterator[Fleet]:
    """Ends its processes with the block."""
    made = Fleet()
    try:
        yield made
    finally:
        made.stop()


class _TimedStore(WorkerStore):
    def __init__(self, settings: WorkerSettings, times: Times, *, is_brief: bool) -> None:
        connect = connect_briefly if is_brief else connect_worker
        super().__init__(
            connect(settings.redis_url),
            lease_seconds=settings.lease_seconds,
            retention_seconds=settings.retention_seconds,
        )
        self._times = times

    @override
    def _run(self, script: str, request_id: str, *args: str | int) -> Any:
        began = time.perf_counter()
        answer = super()._run(script, request_id, *args)
        self._times[script].append(time.perf_counter() - began)
        return answer


class _Runner(Runner):
    @override
    def _encode(self, clip: Clip, job: Job, draft: Path) -> None:
        draft.write_bytes(bytes(VIDEO_BYTES))


class _Worker(EngineWorker):
    """In a thread, which gets no signals."""

    times: Times

    @override
    def _install_signal_handlers(self) -> None: ...

    @override
    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> Any:
        began = time.perf_counter()
        popped = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        self.times["pop"].append(time.perf_counter() - began)
        return popped


def _run_workers(
    count: int, settings: dict[str, str], stagger_seconds: float, connection: Connection
) -> None:
    logging.disable(logging.INFO)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    times: Times = defaultdict(list)
    made = WorkerSettings.model_validate(settings)
    for number in range(count):
        pause = stagger_seconds * number / count
        threading.Thread(target=_work, args=(made, times, pause), daemon=True).start()
        time.sleep(CONNECT_SECONDS)
    connection.send(None)
    while True:
        connection.recv()
        taken = {name: times.pop(name) for name in list(times)}
        connection.send(taken)


def _work(settings: WorkerSettings, times: Times, pause_seconds: float) -> None:
    """As `work` in worker/__main__.py."""
    name, engine = new_worker_name(), FakeEngine(0)
    stop = Stop(settings.drain_seconds)
    brief = _TimedStore(settings, times, is_brief=True)
    outputs = open_outputs(settings, patience_seconds=1)
    heartbeat = Heartbeat(
        LiveWorker(name, engine.traits),
        brief,
        Reconciler(brief, lease_seconds=settings.lease_seconds),
        BrokerLog(settings.redis_url),
        stall_seconds=settings.stall_seconds,
        stop=stop,
    )
    runner = _Runner(
        worker=name,
        engine=engine,
        store=_TimedStore(settings, times, is_brief=False),
        outputs=outputs,
        heartbeat=heartbeat,
        moderation=Moderation(),
        run_seconds=settings.run_seconds,
        checkpoint_steps=settings.checkpoint_steps,
        preview_steps=settings.preview_steps,
        speed=MockSpeed.parse(settings.mock_speed),
        stop=stop,
    )
    connection = connect_worker(settings.redis_url, decode_responses=False)
    worker = _Worker(name, runner, connection, stop=stop)
    worker.times = times
    read_mark(outputs, heartbeat)
    start_mark_reader(outputs, heartbeat)
    start_sweeper(brief, outputs, retention_seconds=settings.retention_seconds)
    heartbeat.start()
    time.sleep(pause_seconds)
    worker.work()
