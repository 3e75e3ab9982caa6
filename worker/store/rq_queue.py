"""RQ's queue and job hashes. RQ carries ids from the gateway to the workers.

Its own status, results and retries are not used: the job record is the only truth. `TASK` is not
importable on purpose; the worker compares it and imports nothing that it reads from Redis.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from rq.exceptions import DequeueTimeout
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from typing_extensions import override

from worker.store import keyspace, scripts

_log = structlog.get_logger()

TASK = "mochi-1.generate"
SERIALIZER = JSONSerializer
POP_SECONDS = 1
"""Timeout of one blocking pop; also the longest that an idle worker takes to see a signal."""


class FairQueue(Queue):
    """Pops in the order of the fair queue; RQ's own pop is first in, first out."""

    @override
    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        pop = connection.register_script(scripts.source("pop"))
        popped = pop(keys=keyspace.for_scripts())
        if popped is not None:
            return queue_key, popped
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


def rq_fields(request_id: str) -> list[str | bytes]:
    """RQ's hash of a queued job, as alternating names and values."""
    return [*_constant_fields(), "description", request_id]


@cache
def _constant_fields() -> tuple[str | bytes, ...]:
    """All fields but the id. RQ makes them once, as that takes longer than the whole submit."""
    job = RqJob.create(
        TASK,
        connection=Redis(),  # never used
        serializer=SERIALIZER,
        status=JobStatus.QUEUED,
        origin=keyspace.QUEUE,
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
