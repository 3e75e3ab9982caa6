"""The RQ worker that holds the engine.

It is RQ's SimpleWorker, which runs jobs in its own process. The parts that lose jobs when that
process dies or is told to stop are replaced (found by experiment with RQ 3.0):

- RQ's signal handlers raise at any point of the code; ours set a flag, and after a second signal
  the heartbeat thread requeues the running request.
- RQ's own execution, retries, results, registries and their cleaning are left out: the job record
  is the only truth, and the reconciler brings back what a dead worker leaves.
- RQ's registry of workers is left out: a broker with full memory would refuse to write it.
- RQ takes commands by publish/subscribe and imports the function that a job names; this one takes
  none, and compares the name.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from time import sleep
from types import FrameType

import structlog
from rq import SimpleWorker
from rq.exceptions import DeserializationError, StopRequested
from rq.job import Job as RqJob
from rq.queue import Queue
from typing_extensions import override

from models.errors import EngineBrokenError
from models.request.params import MODEL
from worker.broker.connection import Client
from worker.errors import DiskFullError, OtherStoreError
from worker.process.shutdown import DRAIN, Stop, on_signals
from worker.runtime.background import read_mark
from worker.runtime.runner import Runner
from worker.store.rq_queue import POP_SECONDS, SERIALIZER, TASK, FairQueue, queue_of

_log = structlog.get_logger()


class EngineWorker(SimpleWorker):
    """Pops ids of its queues, one at a time, and hands each to the runner."""

    queue_class = FairQueue

    def __init__(
        self,
        name: str,
        runner: Runner,
        connection: Client,
        *,
        stop: Stop,
        sources: Sequence[str] = (MODEL,),
    ) -> None:
        self._queue = queue_of(sources, connection)
        super().__init__(
            [self._queue],
            name=name,
            connection=connection,
            serializer=SERIALIZER,
            log_job_description=False,
        )
        self._runner = runner
        self._stop = stop
        self._is_elsewhere = False

    @override
    def execute_job(self, job: RqJob, queue: Queue) -> None:
        """Run a popped request, if the job names `TASK`.

        Raises:
            EngineBrokenError: end the process.
        """
        if not _is_ours(job):
            _log.error("job.refused", job_id=job.id, queue=queue.name)
            return
        with structlog.contextvars.bound_contextvars(request_id=job.id, attempt=None):
            try:
                if self._stop.draining:  # since the pop began
                    self._runner.requeue_popped(job.id)
                else:
                    self._runner.run(job.id)
            except EngineBrokenError:
                raise
            except OtherStoreError as error:
                self._wait_for_store(error)
            except StopRequested:
                # The broker is away and the process must stop: another worker repeats the run.
                _log.warning("run.left_behind")
            except Exception:  # noqa: BLE001 (this worker can run the next one)
                # The broker refuses to write, or holds an invalid record. The lease ends, and the
                # file is swept.
                _log.exception("run.unfinished")

    @override
    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Wait for an id in short pops. None, which ends `work`, when told to stop."""
        while not self._stop.draining:
            if not self._has_space():
                sleep(POP_SECONDS)
                continue
            try:
                popped = self._queue.pop()
            except Exception as error:
                job_id = getattr(error, "job_id", None)
                if job_id is None or isinstance(error, StopRequested):
                    raise
                _log.error("job.refused", job_id=job_id, reason=type(error).__name__)
            else:
                if popped is not None:
                    return popped
        return None

    def _wait_for_store(self, error: OtherStoreError) -> None:
        """Read the mark again; if it is the same, leave the request to other workers a moment."""
        heartbeat, before = self._runner.heartbeat, self._runner.heartbeat.worker
        read_mark(self._runner.outputs, heartbeat)
        if heartbeat.worker != before:
            return
        if not self._is_elsewhere:
            _log.error("outputs.other_store", reason=str(error))
        self._is_elsewhere = True
        sleep(POP_SECONDS)

    def _has_space(self) -> bool:
        """Whether the disk takes a video. If not, requests wait; a run would fail at its end."""
        heartbeat, pause = self._runner.heartbeat, ""
        try:
            self._runner.outputs.check_space()
        except DiskFullError as error:
            pause = str(error)
            if not heartbeat.worker.pause:
                _log.error("disk.full", reason=pause, folder=str(error.folder))
        if bool(pause) != bool(heartbeat.worker.pause):  # its figures may change all the time
            heartbeat.worker = replace(heartbeat.worker, pause=pause)
        return not pause

    @override
    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: finish the running request, take no other. Second: requeue it."""
        self._stop.ask(signum)
        self._stop_requested = True  # RQ's own

    @override
    def _set_connection(self, connection: Client) -> Client:
        """Keep its timeouts: RQ would let a call wait 415 seconds for a server that hangs."""
        return connection

    @override
    def _install_signal_handlers(self) -> None:
        on_signals(self.request_stop, signal.SIGINT, signal.SIGTERM, DRAIN)

    # RQ's registry of workers, maintenance, commands and suspension are not used.

    @override
    def _set_ip_address(self, connection: Client) -> None:
        self.ip_address = "unknown"

    @override
    def register_birth(self) -> None: ...

    @override
    def register_death(self) -> None: ...

    @override
    def heartbeat(self, timeout: int | None = None, pipeline: object = None) -> None: ...

    @override
    def set_state(self, state: str, pipeline: object = None) -> None:
        self._state = state  # RQ logs it

    @override
    def run_maintenance_tasks(self) -> None: ...

    @override
    def subscribe(self) -> None: ...

    @override
    def unsubscribe(self) -> None: ...

    @override
    def check_for_suspension(self, burst: bool) -> None: ...


def _is_ours(job: RqJob) -> bool:
    try:
        return job.func_name == TASK
    except DeserializationError:
        return False
