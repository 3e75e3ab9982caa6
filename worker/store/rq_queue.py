"""RQ's queue and job hashes. RQ carries ids from the gateway to the workers.

Its own status, results and retries are not used: the job record is the only truth. `TASK` is not
importable on purpose; the worker compares it and imports nothing that it reads from Redis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import structlog
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from rq.exceptions import DequeueTimeout
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from typing_extensions import override

from models.request.params import MODEL
from worker.store import keyspace, scripts

_log = structlog.get_logger()

TASK = "mochi-1.generate"
SERIALIZER = JSONSerializer
POP_SECONDS = 1
"""Timeout of one blocking pop; also the longest that an idle worker takes to see a signal."""
LOOK_SECONDS = 0.1
"""Between two looks of an idle worker of several queues: a pop that blocks on several queues loses
the id when its worker dies."""


class FairQueue(Queue):
    """Pops in the order of the fair queue; RQ's own pop is first in, first out."""

    sources: ClassVar[Sequence[str]] = (MODEL,)
    """The queues that it pops from: see `LiveWorker.sources`."""

    @override
    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        pop = connection.register_script(scripts.source("pop"))
        for _ in range(1 if len(cls.sources) == 1 else round(POP_SECONDS / LOOK_SECONDS)):
            popped = pop(keys=keyspace.for_scripts(), args=cls.sources)
            if popped is not None:
                return queue_key, popped
            if len(cls.sources) > 1:
                time.sleep(LOOK_SECONDS)
        if len(cls.sources) > 1:
            raise DequeueTimeout(timeout, queue_key)
        try:
            return super().lmove(connection, queue_key, timeout)  # blocks until a submit
        except OutOfMemoryError:
            # A broker with full memory runs our scripts and refuses RQ's plain command.
            time.sleep(POP_SECONDS)
            raise DequeueTimeout(timeout, queue_key) from None

    def pop(self) -> tuple[RqJob, Queue] | None:
        """The next job; None after `POP_SECONDS` without one, or if the broker refuses.

        Raises:
            Exception: RQ cannot read the job; the error's `job_id` names it.
        """
        try:
            return self.dequeue_any(
                [self], POP_SECONDS, connection=self.connection, serializer=SERIALIZER
            )
        except DequeueTimeout:
            return None
        except UnicodeDecodeError as error:  # the reconciler removes the id
            _log.error("job.refused", job_id=repr(error.object), reason="its id is not UTF-8")
            return None
        except ResponseError:  # a passing refusal of writes; the heartbeat logs the reason
            time.sleep(POP_SECONDS)
            return None


def queue_of(sources: Sequence[str], connection: Redis) -> FairQueue:
    """The queue of a worker that takes requests from these; the first is a plain one."""
    kind = type("FairQueue", (FairQueue,), {"sources": tuple(sources)})
    queue: FairQueue = kind(sources[0], connection=connection, serializer=SERIALIZER)
    return queue


def rq_fields(request_id: str, queue: str = MODEL) -> list[str | bytes]:
    """RQ's hash of a queued job, as alternating names and values."""
    return [*_constant_fields(queue), "description", request_id]


@cache
def _constant_fields(queue: str) -> tuple[str | bytes, ...]:
    """All fields but the id. RQ makes them once, as that takes longer than the whole submit."""
    job = RqJob.create(
        TASK,
        connection=Redis(),  # never used
        serializer=SERIALIZER,
        status=JobStatus.QUEUED,
        origin=queue,
        description="",
        timeout=-1,
    )
    fields = job.to_dict()
    del fields["description"]
    return tuple(
        part if isinstance(part, (str, bytes)) else str(part)
        for item in fields.items()
        for part in item
    )
