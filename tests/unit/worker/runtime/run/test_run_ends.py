"""How a run ends early: a failure, a time limit, a lost lease, a shutdown."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import psutil
import pytest
from structlog.testing import capture_logs

from models.engine import Checkpoints, Clip, OnStep, Previews
from models.errors import EngineBrokenError, OutOfMemoryError
from models.group import FULL, OUT_OF_MEMORY, Leader
from models.mock.fake_engine import FakeEngine
from models.request.params import GenerateParams
from tests.support.jobs import find, pop, submit, waiting
from tests.unit.worker.support.cached import delete
from tests.unit.worker.support.cached import submit as submit_twin
from tests.unit.worker.support.desk import Desk, Hooked, Stubborn
from worker.errors import BrokerUnavailableError, StorageError
from worker.job import Status
from worker.outputs.local import LocalOutputs
from worker.process.shutdown import Stop
from worker.provenance.marker import Marker
from worker.runtime.followers import end_full, refuse_gpu
from worker.runtime.run import Run
from worker.store import keyspace
from worker.store.worker_side import Lease, Recovery, Result, WorkerStore


@pytest.mark.parametrize(
    ("scenario", "code", "error"),
    [
        ("fail:the lens cap was on", "internal", "the lens cap was on"),
        (
            "out_of_memory",
            "out_of_memory",
            "The GPU is out of memory, as requested by the mock scenario. Ask for fewer frames.",
        ),
        ("bug", "internal", "The worker failed on this request; its log says why."),
    ],
)
def test_an_engine_that_raises_fails_the_request(
    desk: Desk, scenario: str, code: str, error: str
) -> None:
    job = desk.run(Hooked(), scenario)
    assert (job.status, job.error_code, job.error) == (Status.FAILED, code, error)
    assert desk.files() == []
    assert waiting(desk.redis) == []


class Unmarkable(Marker):
    """Cannot mark a video, as on a full disk."""

    def mark(self, video: Path, *_: object) -> None:
        video.unlink()
        raise StorageError("The video cannot be signed.")


def test_a_video_that_cannot_be_marked_is_not_published(desk: Desk) -> None:
    desk.marker = Unmarkable()
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "storage")
    assert job.error == "The video cannot be signed."
    assert desk.files() == []


def test_a_broken_engine_ends_the_worker_and_leaves_the_request_to_another(desk: Desk) -> None:
    def fall_off_the_bus(step: int) -> None:
        raise EngineBrokenError("The GPU failed.")

    request_id = submit(desk.url)
    pop(desk.redis)
    with pytest.raises(EngineBrokenError):
        desk.runner(Hooked(fall_off_the_bus)).run(request_id)
    assert find(desk.url, request_id).status is Status.PROCESSING
    assert desk.take_away() is Recovery.REQUEUED
    assert desk.heartbeat.current_run is None


def test_a_full_card_of_a_follower_ends_the_request_though_rank_0_waits_for_that_card(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Pipe()
    waits, answers = Event(), Event()
    statuses: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(os, "_exit", statuses.put)

    def exchange(step: int) -> None:
        waits.set()
        answers.wait()

    request_id = submit(desk.url)
    pop(desk.redis)
    runner = desk.runner(Hooked(exchange))
    end = partial(end_full, fail=runner.fail_out_of_memory)
    run = Thread(target=runner.run, args=(request_id,))
    with ours, theirs, capture_logs() as logs:
        Leader(Path(), [ours], on_death=statuses.put, on_full=end)
        run.start()
        waits.wait()
        theirs.send_bytes(OUT_OF_MEMORY)
        assert statuses.get(timeout=60) == os.EX_TEMPFAIL
        job = find(desk.url, request_id)
        answers.set()
        run.join()
        theirs.close()
        statuses.get(timeout=60)
    assert (job.status, job.error_code, job.error) == (Status.FAILED, "out_of_memory", FULL)
    events = [log["event"] for log in logs]
    assert events[:3] == ["run.started", "rank.out_of_memory", "run.failed"]
    assert find(desk.url, request_id).status is Status.FAILED


def test_a_card_that_is_too_small_for_the_warm_up_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    statuses: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(os, "_exit", statuses.put)
    refuse_gpu(1)
    assert statuses.get() == os.EX_CONFIG
    assert "GPU 1 of the group, counted from 0, has too little memory" in capfd.readouterr().err


class Refusing(WorkerStore):
    """A store whose broker refuses to take a result as often as the test says."""

    times = 0

    def complete(self, lease: Lease, result: Result) -> bool:
        self.times -= 1
        if self.times >= 0:
            raise BrokerUnavailableError("refused")
        return super().complete(lease, result)


@pytest.fixture
def refusing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    monkeypatch.setattr("worker.runtime.runner.REFUSED_PAUSE_SECONDS", 0)
    desk.store = store = Refusing(desk.redis, lease_seconds=10, retention_seconds=60)
    return store


def test_a_result_that_is_refused_is_offered_again(desk: Desk, refusing: Refusing) -> None:
    refusing.times = 30
    job = desk.run(Hooked())
    assert job.status is Status.COMPLETED
    assert desk.files() == [job.file_name]


def test_a_result_that_is_refused_for_long_is_left_to_the_lease(
    desk: Desk, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime.runner.REFUSED_SECONDS", 0)
    refusing.times = 4
    with pytest.raises(BrokerUnavailableError):
        desk.run(Hooked())
    assert desk.take_away() is Recovery.REQUEUED
    assert desk.heartbeat.current_run is None


def test_a_result_that_the_broker_can_never_take_is_offered_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime.runner.REFUSED_SECONDS", 3)

    def spoil() -> None:
        (request_id,) = desk.redis.zrange(keyspace.LEASES, 0, -1)
        desk.redis.hset(keyspace.record(str(request_id)), "started_at", "no number")

    with capture_logs() as logs, pytest.raises(BrokerUnavailableError, match="refuses this call"):
        desk.run(Hooked(at_end=spoil))
    assert "run.refused" not in [log["event"] for log in logs]


def test_a_cancel_that_was_accepted_as_the_video_was_published_is_kept(desk: Desk) -> None:
    class Cancelled(WorkerStore):
        def complete(self, lease: Lease, result: Result) -> bool:
            desk.redis.hset(keyspace.record(lease.request_id), "cancelled", "Cancelled.")
            return super().complete(lease, result)

    desk.store = Cancelled(desk.redis, lease_seconds=10, retention_seconds=60)
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "cancelled")
    assert job.cost == 0
    assert desk.files() == []


def test_a_signal_that_ends_the_encoder_too_requeues_the_request(desk: Desk) -> None:
    def signal_all() -> None:
        desk.stop.ask()
        (encoder,) = (one for one in psutil.Process().children() if "ffmpeg" in one.name())
        encoder.terminate()

    again = desk.run(Hooked(at_end=signal_all))
    assert (again.status, again.attempt) == (Status.QUEUED, 0)
    assert waiting(desk.redis) == [again.request_id]


def test_a_disk_that_refuses_fails_the_request(desk: Desk) -> None:
    desk.folder.touch()
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "storage")
    assert job.error == "The folder for videos cannot be made: File exists"


def test_a_video_that_vanishes_before_it_is_published_fails_the_request(desk: Desk) -> None:
    class Wiped(LocalOutputs):
        def publish(self, name: str) -> int:
            self.draft(name).unlink()
            return super().publish(name)

    desk.outputs = Wiped(desk.folder)
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "storage")
    assert desk.files() == []


@pytest.mark.parametrize("kind", [Hooked, Stubborn])
def test_f20_the_time_limit_ends_a_run_at_its_next_step(desk: Desk, kind: type[Hooked]) -> None:
    engine = kind(lambda _: time.sleep(0.02))
    job = desk.run(engine, run_seconds=0.09)
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "timeout", 1)
    assert job.error == "The run took longer than 0.09 seconds."
    assert engine.steps <= 5
    assert desk.files() == []


def test_the_time_limit_holds_while_frames_are_decoded(desk: Desk) -> None:
    class SlowDecoder(FakeEngine):
        def generate(
            self,
            params: GenerateParams,
            on_step: OnStep,
            checkpoints: Checkpoints | None = None,
            previews: Previews | None = None,
            stop_after: int | None = None,
        ) -> Clip:
            clip = super().generate(params, on_step, checkpoints, previews, stop_after)
            return replace(clip, frames=self._decoded(clip))

        def _decoded(self, clip: Clip) -> Iterator[bytes]:
            for frame in clip.frames:
                time.sleep(0.06)
                yield frame

    job = desk.run(SlowDecoder(0), run_seconds=0.1)
    assert (job.status, job.error_code) == (Status.FAILED, "timeout")
    assert desk.files() == []


@pytest.mark.parametrize("kind", [Hooked, Stubborn])
def test_a_run_that_lost_its_lease_stops_and_writes_nothing(desk: Desk, kind: type[Hooked]) -> None:
    def lose(step: int) -> None:
        if step == 3:
            assert desk.take_away() is Recovery.REQUEUED
            desk.heartbeat._beat()

    engine = kind(lose)
    job = desk.run(engine)
    assert (job.status, job.attempt) == (Status.QUEUED, 1)
    assert engine.steps == 3
    assert desk.files() == []
    assert waiting(desk.redis) == [job.request_id]


def test_a_run_that_lost_its_lease_at_the_very_end_removes_its_video(desk: Desk) -> None:
    job = desk.run(Hooked(at_end=desk.take_away))
    assert job.status is Status.QUEUED
    assert desk.files() == []


def test_a_late_run_leaves_the_video_of_the_one_that_won(desk: Desk) -> None:
    def another_wins() -> None:
        desk.take_away()
        desk.runner(FakeEngine(0)).run(str(pop(desk.redis)))

    job = desk.run(Hooked(at_end=another_wins))
    assert (job.status, job.attempt) == (Status.COMPLETED, 2)
    assert desk.files() == [job.file_name]


def test_a_video_that_twins_have_outlives_a_delete_before_the_reply(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = desk.store.complete

    def lose_reply(lease: Lease, result: Result) -> bool:
        done = complete(lease, result)
        if done:
            assert delete(desk.url, lease.request_id) == ""
            raise BrokerUnavailableError("The reply is lost.")
        return done

    monkeypatch.setattr(desk.store, "complete", lose_reply)
    first, second = (submit_twin(desk.url) for _ in range(2))
    assert pop(desk.redis) == first
    desk.runner(FakeEngine(0)).run(first)
    twin = find(desk.url, second)
    assert twin.status is Status.COMPLETED
    assert desk.files() == [twin.file_name]


@pytest.mark.parametrize("kind", [Hooked, Stubborn])
def test_a_run_that_must_stop_is_requeued_at_its_next_step(desk: Desk, kind: type[Hooked]) -> None:
    def stop(step: int) -> None:
        if step == 3:
            desk.stop.grace_seconds = 0
            desk.stop.ask()

    engine = kind(stop)
    job = desk.run(engine)
    assert (job.status, job.attempt, job.position) == (Status.QUEUED, 0, 1)
    assert engine.steps == 3
    assert desk.files() == []
    assert waiting(desk.redis) == [job.request_id]


def test_a_request_that_was_popped_too_late_goes_back_as_it_was(desk: Desk) -> None:
    first, second = submit(desk.url), submit(desk.url)
    before = find(desk.url, first)
    assert pop(desk.redis) == first
    desk.runner(Hooked()).requeue_popped(first)
    assert find(desk.url, first) == before
    assert waiting(desk.redis) == [first, second]


def test_only_an_engine_at_work_can_hang() -> None:
    run = Run(Lease("an-id", "run"), 60, Stop())
    with run.watched():
        time.sleep(0.01)
        assert run.silent_seconds() >= 0.01
    assert run.silent_seconds() == 0


def test_an_error_that_ends_the_worker_ends_its_request_first(desk: Desk) -> None:
    def fail(_step: int) -> None:
        error = OutOfMemoryError("A card of the group is full.")
        error.ends_worker = True
        raise error

    request_id = submit(desk.url, "a pond", frames=3)
    pop(desk.redis)
    with pytest.raises(EngineBrokenError):
        desk.runner(Hooked(fail)).run(request_id)
    job = find(desk.url, request_id)
    assert (job.status, job.error_code) == (Status.FAILED, "out_of_memory")
