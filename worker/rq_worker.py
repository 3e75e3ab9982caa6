"""The RQ worker that holds the engine.

It is RQ's SimpleWorker, which runs jobs in its own process, with the parts replaced that lose jobs
when that process dies or is told to stop (found by experiment with RQ 3.0):

- RQ's signal handlers raise from wherever they strike; ours set a flag, and a second signal
  gives the running request back to the queue at its next step.
- RQ's own execution, retries, results, registries and their cleaning are left out: the job record
  is the only truth, and the reconciler brings back what a dead worker leaves.
- RQ takes commands by publish/subscribe and imports the function that a job names; this one takes
  none, and compares the name.
"""

from __future__ import annotations

import signal
from threading import Event
from types import FrameType

import structlog
from redis import Redis
from rq import SimpleWorker, worker_registration
from rq.exceptions import DequeueTimeout, DeserializationError
from rq.job import Job as RqJob
from rq.queue import Queue
from rq.worker.base import WorkerStatus
from typing_extensions import override

from worker import keyspace
from worker.dispatch import SERIALIZER, TASK
from worker.runner import Runner

POP_SECONDS = 1
"""One blocking pop; also how long a signal may wait while the worker is idle."""

_log = structlog.get_logger()


class EngineWorker(SimpleWorker):
    """Pops ids, one queue, one at a time, and hands each to the runner."""

    def __init__(self, name: str, runner: Runner, connection: Redis, *, stop_now: Event) -> None:
        super().__init__(
            [Queue(keyspace.QUEUE, connection=connection, serializer=SERIALIZER)],
            name=name,
            connection=connection,
            serializer=SERIALIZER,
            log_job_description=False,
        )
        self._runner = runner
        self._stop_now = stop_now

    @override
    def execute_job(self, job: RqJob, queue: Queue) -> None:
        """Run a popped request, if it is the one function that we run."""
        if not _is_ours(job):
            _log.error("job.refused", job_id=job.id, queue=queue.name)
            return
        if self._stop_requested:  # while the pop waited
            self._runner.hand_back(job.id)
            return
        self.set_state(WorkerStatus.BUSY)
        self._runner.run(job.id)

    @override
    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Wait for an id in short pops. None, which ends `work`, when told to stop."""
        self.set_state(WorkerStatus.IDLE)
        while not self._stop_requested:
            self.heartbeat()
            try:
                return self.queue_class.dequeue_any(
                    self.queues, POP_SECONDS, connection=self.connection, serializer=self.serializer
                )
            except DequeueTimeout:
                continue
            except Exception as error:
                # RQ notes the id of what it has popped and cannot read.
                job_id = getattr(error, "job_id", None)
                if job_id is None:
                    raise
                _log.error("job.refused", job_id=job_id, reason=type(error).__name__)
        return None

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal came."""
        return self._stop_requested

    @override
    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: finish the running request, take no other. Second: give it back."""
        if self._stop_requested:
            self._stop_now.set()
        self._stop_requested = True

    @override
    def _set_connection(self, connection: Redis) -> Redis:
        """As it is: RQ would let a call wait 415 seconds for a server that hangs."""
        return connection

    @override
    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.request_stop)

    @override
    def register_birth(self) -> None:
        """Join RQ's list of workers, without those that died in it."""
        for queue in self.queues:
            worker_registration.clean_worker_registry(queue)
        super().register_birth()  # type: ignore[no-untyped-call]  # RQ's is not annotated

    @override
    def run_maintenance_tasks(self) -> None:
        """Nothing: see the reconciler."""

    @override
    def subscribe(self) -> None:
        """Nothing: no commands."""

    @override
    def unsubscribe(self) -> None:
        """Nothing: no commands."""

    @override
    def check_for_suspension(self, burst: bool) -> None:
        """Nothing: a worker is stopped, not suspended."""


def _is_ours(job: RqJob) -> bool:
    try:
        return job.func_name == TASK
    except DeserializationError:
        return False
