"""What RQ is told of a job: its id, and the name of the one function that a worker runs.

RQ carries ids from the gateway to the workers. Its own status, results and retries are not used:
the job record is the only truth. The name is not importable on purpose; our worker compares it and
imports nothing that it reads from Redis.
"""

from __future__ import annotations

from functools import cache

from redis import Redis
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from worker.store import keyspace

TASK = "mochi-1.generate"
SERIALIZER = JSONSerializer


def rq_fields(request_id: str) -> list[str | bytes]:
    """The hash that RQ expects for a queued job, as names and values in turn."""
    return [*_constant_fields(), "description", request_id]


@cache
def _constant_fields() -> tuple[str | bytes, ...]:
    """All but the id, made by RQ itself, once: it takes longer than all else of a submit."""
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
