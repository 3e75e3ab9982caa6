"""When a checkpoint is kept, used and removed: the fake engine, a real store, real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from models.errors import EngineBrokenError
from tests.support.jobs import find, pop, submit
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Status
from worker.process.shutdown import Stop
from worker.store import keyspace
from worker.store.worker_side import Recovery

REQUEST = "0b6f4a52-1f43-4c5f-9d57-000000000000"


@pytest.fixture
def desk(redis: Redis, redis_url: str, tmp_path: Path) -> Desk:
    """A worker that keeps a checkpoint every three steps; requests have ten."""
    desk = Desk(redis, redis_url, tmp_path / "outputs")
    desk.checkpoint_steps = 3
    return desk


def run_next(desk: Desk, engine: Hooked) -> list[dict[str, Any]]:
    """Pop a request and run it; what was logged about its checkpoints."""
    desk.stop = desk.heartbeat._shutdown = Stop()
    with capture_logs(processors=[merge_contextvars]) as log:
        desk.runner(engine).run(str(pop(desk.redis)))
    return [dict(event) for event in log if event["event"].startswith("checkpoint.")]


def requeued(desk: Desk, after: int) -> str:
    """A request whose run was requeued at a step."""

    def stop(step: int) -> None:
        if step == after:
            desk.stop.grace_seconds = 0
            desk.stop.ask()

    job = desk.run(Hooked(stop))
    assert job.status is Status.QUEUED
    return job.request_id


def test_a_run_keeps_one_checkpoint_and_its_end_removes_it(desk: Desk) -> None:
    seen: list[list[str]] = []
    engine = Hooked(lambda _: seen.append(desk.files()))
    job = desk.run(engine)
    assert seen[:3] == [[]] * 3
    assert seen[3:] == [[f"{job.request_id}.checkpoint"]] * 7
    assert job.status is Status.COMPLETED
    assert desk.files() == [job.file_name]


def test_a_run_that_was_requeued_goes_on_in_the_next_one(desk: Desk) -> None:
    request_id = requeued(desk, after=8)
    assert desk.files() == [f"{request_id}.checkpoint"]
    steps_of_record: list[int] = []

    def look(_step: int) -> None:
        desk.heartbeat._beat()
        steps_of_record.append(find(desk.url, request_id).step)

    engine = Hooked(look)
    log = run_next(desk, engine)
    job = find(desk.url, request_id)
    assert (job.status, job.attempt) == (Status.COMPLETED, 1)
    assert engine.steps == 4
    assert steps_of_record == [6, 7, 8, 9]
    assert [(event["event"], event["step"]) for event in log] == [
        ("checkpoint.resumed", 6),
        ("checkpoint.saved", 9),
    ]
    assert {event["request_id"] for event in log} == {request_id}
    assert desk.files() == [job.file_name]


def test_a_run_that_lost_its_lease_leaves_the_checkpoint_to_the_next_one(desk: Desk) -> None:
    def lose(step: int) -> None:
        if step == 5:
            assert desk.take_away() is Recovery.REQUEUED
            desk.heartbeat._beat()

    job = desk.run(Hooked(lose))
    assert desk.files() == [f"{job.request_id}.checkpoint"]
    engine = Hooked()
    run_next(desk, engine)
    job = find(desk.url, job.request_id)
    assert (job.status, job.attempt, engine.steps) == (Status.COMPLETED, 2, 7)
    assert desk.files() == [job.file_name]


def test_a_late_run_removes_no_checkpoint_that_another_may_need(desk: Desk) -> None:
    job = desk.run(Hooked(at_end=desk.take_away))
    assert job.status is Status.QUEUED
    assert desk.files() == [f"{job.request_id}.checkpoint"]


def test_a_run_that_fails_too_late_does_neither(desk: Desk) -> None:
    def fail() -> None:
        desk.take_away()
        raise RuntimeError

    job = desk.run(Hooked(at_end=fail))
    assert job.status is Status.QUEUED
    assert desk.files() == [f"{job.request_id}.checkpoint"]


def test_a_worker_that_dies_leaves_it(desk: Desk) -> None:
    def fall_off_the_bus(step: int) -> None:
        if step == 5:
            raise EngineBrokenError("The GPU failed.")

    with pytest.raises(EngineBrokenError):
        desk.run(Hooked(fall_off_the_bus))
    (request_id,) = map(str, desk.redis.zrange(keyspace.LEASES, 0, -1))
    assert desk.files() == [f"{request_id}.checkpoint"]


@pytest.mark.parametrize("scenario", ["fail", "out_of_memory", "bug"])
def test_a_run_that_fails_removes_it(desk: Desk, scenario: str) -> None:
    seen: list[list[str]] = []
    job = desk.run(Hooked(lambda _: seen.append(desk.files())), scenario)
    assert job.status is Status.FAILED
    assert seen[-1] == [f"{job.request_id}.checkpoint"]
    assert desk.files() == []


def test_without_the_setting_none_is_kept_or_looked_at(desk: Desk) -> None:
    request_id = requeued(desk, after=8)
    desk.checkpoint_steps = 0
    engine = Hooked()
    assert run_next(desk, engine) == []
    assert engine.steps == 10
    assert find(desk.url, request_id).status is Status.COMPLETED


def test_a_disk_that_keeps_none_fails_no_request(desk: Desk) -> None:
    request_id = submit(desk.url)
    (desk.folder / f"{request_id}.checkpoint").mkdir(parents=True)
    log = run_next(desk, Hooked())
    job = find(desk.url, request_id)
    assert job.status is Status.COMPLETED
    (event,) = log  # it is not tried again
    assert (event["event"], event["step"]) == ("checkpoint.not_saved", 3)
    assert event["reason"] == "The checkpoint cannot be kept: Is a directory"
    assert sorted(desk.files()) == sorted([job.file_name, f"{request_id}.checkpoint"])


def test_a_planted_id_has_no_checkpoint(desk: Desk, tmp_path: Path) -> None:
    job = desk.run(Hooked())
    desk.redis.copy(keyspace.record(job.request_id), keyspace.record("../stolen"))
    desk.redis.hset(keyspace.record("../stolen"), mapping={"status": "QUEUED", "attempt": 0})
    desk.runner(Hooked()).run("../stolen")
    assert desk.redis.hget(keyspace.record("../stolen"), "status") == "FAILED"
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
