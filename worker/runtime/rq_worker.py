"""The RQ worker that holds the engine.

It is RQ's SimpleWorker, which runs jobs in its own process, with the parts replaced that lose jobs
when that process dies or is told to stop (found by experiment with RQ 3.0):

- RQ's signal handlers raise from wherever they strike; ours set a flag, and after a second signal
  the heart gives the running request back to the queue.
- RQ's own execution, retries, results, registries and their cleaning are left out: the job record
  is the only truth, and the reconciler brings back what a dead worker leaves.
- RQ's registry of workers is left out: nobody reads it, and a broker whose memory is full would
  refuse to write it.
- RQ takes commands by publish/subscribe and imports the function that a job names; this one takes
  none, and compares the name.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import structlog
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError, ResponseError
from rq import SimpleWorker
from rq.exceptions import DequeueTimeout, DeserializationError, StopRequested
from rq.job import Job as RqJob
from rq.queue import Queue
from typing_extensions import override

from models.errors import EngineBrokenError
from worker.process.shutdown import Stop
from worker.runtime.runner import Runner
from worker.store import keyspace, scripts
from worker.store.rq_record import SERIALIZER, TASK

POP_SECONDS = 1
"""One blocking pop; also how long a signal may wait while the worker is idle."""

_log = structlog.get_logger()


class FairQueue(Queue):
    """Pops whose turn it is; RQ's own knows only who came first, and waits when nobody is there."""

    @override
    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        pop = connection.register_script(scripts.source("pop"))
        popped = pop(keys=keyspace.for_scripts())
        if popped is not None:
            return queue_key, popped
        try:
            return super().lmove(connection, queue_key, timeout)
        except OutOfMemoryError:
            time.sleep(POP_SECONDS)  # the broker's memory is full: it refuses the plain command
            raise DequeueTimeout(timeout, queue_key) from None


class EngineWorker(SimpleWorker):
    """Pops ids, one queue, one at a time, and hands each to the runner."""

    queue_class = FairQueue

    def __init__(self, name: str, runner: Runner, connection: Redis, *, stop: Stop) -> None:
        super().__init__(
            [FairQueue(keyspace.QUEUE, connection=connection, serializer=SERIALIZER)],
            name=name,
            connection=connection,
            serializer=SERIALIZER,
            log_job_description=False,
        )
        scripts.source("pop")  # now, not when somebody has put another version in its place
        self._runner = runner
        self._stop = stop

    @override
    def execute_job(self, job: RqJob, queue: Queue) -> None:
        """Run a popped request, if it is the one function that we run.

        Raises:
            EngineBrokenError: end the process.
        """
        if not _is_ours(job):
            _log.error("job.refused", job_id=job.id, queue=queue.name)
            return
        with structlog.contextvars.bound_contextvars(request_id=job.id, attempt=None):
            self._execute(job)

    def _execute(self, job: RqJob) -> None:
        try:
            if self._stop.draining:  # while the pop waited
                self._runner.requeue_popped(job.id)
            else:
                self._runner.run(job.id)
        except EngineBrokenError:
            raise
        except StopRequested:
            # The broker is away, and we must stop: another worker makes the video again.
            _log.warning("run.left_behind")
        except Exception:  # noqa: BLE001 (this worker can run the next one)
            # The broker refuses to write, or holds a record that makes no sense. What is left is a
            # lease that ends, and a file that is swept.
            _log.exception("run.unfinished")

    @override
    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Wait for an id in short pops. None, which ends `work`, when told to stop."""
        while not self._stop.draining:
            try:
                return self.queue_class.dequeue_any(
                    self.queues, POP_SECONDS, connection=self.connection, serializer=self.serializer
                )
            except DequeueTimeout:
                continue
            except ResponseError:  # it may take writes again; until then the heart says why not
                time.sleep(POP_SECONDS)
            except Exception as error:
                # RQ notes the id of what it has popped and cannot read.
                job_id = getattr(error, "job_id", None)
                if job_id is None or isinstance(error, StopRequested):
                    raise
                _log.error("job.refused", job_id=job_id, reason=type(error).__name__)
        return None

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal came."""
        return self._stop.draining

    @override
    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: finish the running request, take no other. Second: give it back."""
        self._stop.ask()
        self._stop_requested = True  # RQ's own

    @override
    def _set_connection(self, connection: Redis) -> Redis:
        """As it is: RQ would let a call wait 415 seconds for a server that hangs."""
        return connection

    @override
    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.request_stop)

    @override
    def _set_ip_address(self, connection: Redis) -> None:
        """For the registry."""
        self.ip_address = "unknown"

    @override
    def register_birth(self) -> None:
        """Nothing: no registry."""

    @override
    def register_death(self) -> None:
        """Nothing: no registry."""

    @override
    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Nothing: no registry; see the heart."""

    @override
    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """For the log only: no registry."""
        self._state = state

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
