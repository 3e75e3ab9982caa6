from __future__ import annotations

import json
import zlib
from typing import cast

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus

from models.request.params import MODEL
from tests.support.jobs import submit
from worker.broker.connection import connect_worker
from worker.store.rq_queue import SERIALIZER, TASK

SECRET = "a prompt that nobody else should read"


def fetched(redis_url: str, request_id: str) -> RqJob:
    connection = connect_worker(redis_url, decode_responses=False)
    job = RqJob.fetch(request_id, connection=connection, serializer=SERIALIZER)
    connection.close()
    return job


def test_rq_reads_our_job_as_one_of_its_own(redis_url: str) -> None:
    request_id = submit(redis_url)
    job = fetched(redis_url, request_id)
    assert (job.id, job.origin, job.get_status(refresh=False)) == (
        request_id, MODEL, JobStatus.QUEUED,
    )  # fmt: skip
    assert (job.func_name, job.args, job.kwargs, job.instance) == (TASK, [], {}, None)


def test_rqs_queue_holds_the_id_and_is_known_to_rq(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url)
    connection = connect_worker(redis_url, decode_responses=False)
    assert [queue.name for queue in Queue.all(connection=connection)] == [MODEL]
    assert Queue(MODEL, connection=connection).job_ids == [request_id]
    connection.close()


def test_rqs_description_is_the_id(redis_url: str) -> None:
    request_id = submit(redis_url)
    assert fetched(redis_url, request_id).description == request_id


def test_rq_may_do_nothing_for_us_but_carry_the_id(redis_url: str) -> None:
    job = fetched(redis_url, submit(redis_url))
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None,) * 3
    assert not job.webhooks
    assert not job.retries_left
    assert not job.dependency_ids


def test_no_key_of_rq_has_a_prompt_or_a_pickle(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url, SECRET, negative_prompt=SECRET)
    raw = connect_worker(redis_url, decode_responses=False)
    keys = raw.keys("rq:*")
    assert set(keys) == {
        b"rq:queues", b"rq:queue:mochi-1", f"rq:job:{request_id}".encode(),
    }  # fmt: skip
    dumped = [raw.dump(key) or b"" for key in keys]
    fields = cast(dict[bytes, bytes], raw.hgetall(f"rq:job:{request_id}"))
    raw.close()
    data = zlib.decompress(fields[b"data"])
    assert json.loads(data) == [TASK, None, [], {}]
    for value in (*dumped, data, *fields.values()):
        assert SECRET.encode() not in value
        assert not value.startswith(b"\x80")  # how a pickle begins


def test_the_name_of_the_task_cannot_be_imported() -> None:
    assert not all(part.isidentifier() for part in TASK.split("."))
