"""A run that goes well: its stages, its record, its warnings and its video."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
from structlog.testing import capture_logs

from models.engine import Checkpoints, Clip, OnStep, Previews, Traits
from models.mock.card_speed import MockSpeed
from models.mock.fake_engine import FakeEngine
from models.request.params import GenerateParams
from tests.support.jobs import find, pop, submit
from tests.support.stack import eventually
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Job, Stage, Status
from worker.outputs.local import LocalOutputs
from worker.pace import USUAL, Pace, Work
from worker.provenance.label import AI_MADE
from worker.provenance.marker import Marker
from worker.runtime.run import Run
from worker.store import keyspace
from worker.store.fleet import fleet
from worker.store.worker_side import Lease, Result, WorkerStore


def test_a_run_leaves_one_private_video_and_a_record_of_it(desk: Desk) -> None:
    job = desk.run(Hooked())
    assert (job.status, job.attempt) == (Status.COMPLETED, 1)
    assert desk.files() == [job.file_name]
    path = desk.outputs.path(job.file_name)
    assert path.stat().st_size == job.file_size > 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert desk.heartbeat.current_run is None


def test_a_run_goes_through_its_stages_in_order(desk: Desk) -> None:
    seen: list[Stage] = []

    def note(*_: object) -> None:
        assert desk.heartbeat.current_run
        seen.append(desk.heartbeat.current_run.stage)

    class Noting(Hooked):
        def generate(
            self,
            params: GenerateParams,
            on_step: OnStep,
            checkpoints: Checkpoints | None = None,
            previews: Previews | None = None,
            stop_after: int | None = None,
        ) -> Clip:
            note()
            return super().generate(params, on_step, checkpoints, previews, stop_after)

    class Published(LocalOutputs):
        def publish(self, name: str) -> int:
            note()
            return super().publish(name)

    desk.outputs = Published(desk.folder)
    assert desk.run(Noting(note, note)).status is Status.COMPLETED
    assert list(dict.fromkeys(seen)) == ["encoding_prompt", "denoising", "decoding", "publishing"]
    assert seen.count(Stage.DENOISING) == 10


def test_all_frames_are_decoded_before_the_encoder_finishes_alone(desk: Desk) -> None:
    run = Run(Lease("an-id", "a-run"), 60, desk.stop)
    frames = run.checked(iter([b"one", b"two"]), 2)
    stages = [run.stage for _ in frames]
    assert [*stages, run.stage] == [Stage.DECODING, Stage.DECODING, Stage.ENCODING_VIDEO]


def beat(desk: Desk) -> Job:
    """The request that runs, as a poll shows it after a heartbeat."""
    desk.heartbeat._beat()
    (request_id,) = map(str, desk.redis.zrange(keyspace.LEASES, 0, -1))
    return find(desk.url, request_id)


def test_a_beat_shows_step_and_stage_and_another_attempt_begins_without(desk: Desk) -> None:
    shown: list[Job] = []

    def look(step: int) -> None:
        shown.append(beat(desk))
        if step == 3:
            desk.take_away()
            desk.heartbeat._beat()

    again = desk.run(Hooked(look))
    assert [(job.step, job.stage) for job in shown] == [
        (step, Stage.DENOISING) for step in range(3)
    ]
    assert (again.status, again.step, again.stage) == (Status.QUEUED, 0, Stage.QUEUED)
    assert again.progress == 0


def test_a_marked_video_says_what_made_it_and_how_long_that_took(desk: Desk) -> None:
    desk.marker = Marker()
    with capture_logs() as logs:
        job = desk.run(Hooked())
    with av.open(desk.outputs.path(job.file_name)) as file:
        assert file.metadata["description"] == f"Made by AI (light mock). {AI_MADE}"
    (encoded,) = (log for log in logs if log["event"] == "run.encoded")
    parts = {name for name in encoded if name.endswith("_seconds")}
    assert parts == {"denoising_seconds", "video_seconds", "marking_seconds"}
    assert "stage marking sum" in desk.redis.hgetall(keyspace.METRICS)


def test_without_a_marker_a_video_is_the_encoders_and_no_stage_is_added(desk: Desk) -> None:
    with capture_logs() as logs:
        job = desk.run(Hooked())
    assert AI_MADE.encode() not in desk.outputs.path(job.file_name).read_bytes()
    (encoded,) = (log for log in logs if log["event"] == "run.encoded")
    parts = {name for name in encoded if name.endswith("_seconds")}
    assert parts == {"denoising_seconds", "video_seconds"}


def test_progress_weighs_the_parts_of_a_run_by_the_times_of_earlier_runs(desk: Desk) -> None:
    shown: list[int] = []

    def note(*_: object) -> None:
        shown.append(beat(desk).progress)

    engine = Hooked(note, note)
    desk.store.note_pace(engine.traits, Work(2, 10), Pace(1, 0.5, 4))
    desk.store.note_pace(replace(engine.traits, device="another"), Work(2, 10), Pace(1, 1, 1))
    assert desk.run(engine).progress == 100
    # Of 10 seconds, 1 for the prompt, 0.5 for each of 10 steps.
    assert shown == [*range(10, 60, 5), 99]


def test_progress_grows_with_every_frame_and_is_99_at_most(desk: Desk) -> None:
    run = Run(Lease("an-id", "a-run"), 60, desk.stop, pace=Pace(0, 1, 10))
    assert run.progress == 0
    run.on_step(10, 10)
    shown = [run.progress for _ in run.checked(iter([b""] * 5), 5)]
    assert [*shown, run.progress] == [50, 60, 70, 80, 90, 99]


def test_without_measurements_and_without_times_there_is_progress_too() -> None:
    assert [USUAL.progress(30, step, 0) for step in (0, 15, 30)] == [2, 43, 83]
    assert Pace(0, 0, 0).progress(30, 30, 1) == 0


def test_how_fast_a_run_was_is_noted_for_its_length_and_engine(desk: Desk) -> None:
    engine = Hooked(lambda _: time.sleep(0.01))
    desk.run(engine)
    ((name, means),) = dict(desk.redis.hgetall(keyspace.PACES)).items()
    assert name == f"2 {engine.traits}"
    assert float(means.split()[1]) >= 10  # ms of a step


def test_a_failed_run_tells_nothing_of_how_fast_runs_are(desk: Desk) -> None:
    desk.run(Hooked(), "fail")
    assert not desk.redis.exists(keyspace.PACES)


def test_the_video_is_there_before_the_record_says_so(desk: Desk) -> None:
    seen: list[list[str]] = []

    class Watched(WorkerStore):
        def complete(self, lease: Lease, result: Result) -> bool:
            seen.append(desk.files())
            return super().complete(lease, result)

    desk.store = Watched(desk.redis, lease_seconds=10, retention_seconds=60)
    job = desk.run(Hooked())
    assert seen == [[job.file_name]]


class Lossy(FakeEngine):
    """One with real weights, as it says, and with warnings of its own."""

    @property
    def traits(self) -> Traits:
        return Traits("Mochi 1", "a card", "bf16", "24gb", ("fp8", "step_cache"))

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        clip = super().generate(params, on_step, checkpoints, previews, stop_after)
        return replace(clip, warnings=("The prompt was cut.",))


@pytest.mark.parametrize("scenario", ["fail", "crash", "slow:3600", "warn:Careful."])
def test_real_weights_obey_no_scenario_and_take_their_own_time(desk: Desk, scenario: str) -> None:
    desk.speed = MockSpeed.parse("4090")
    request_id = submit(desk.url, scenario=scenario)
    assert pop(desk.redis) == request_id
    desk.runner(Lossy(0)).run(request_id)
    job = find(desk.url, request_id)
    assert job.status is Status.COMPLETED
    assert "Careful." not in job.warnings


def test_mock_weights_take_the_time_of_a_card(desk: Desk) -> None:
    desk.speed = MockSpeed.parse("h100/4")
    job = desk.run(FakeEngine(0))
    assert job.inference_seconds
    assert job.inference_seconds >= job.params.steps * desk.speed.step_seconds(job.params)


def test_who_waits_for_a_card_that_is_not_there_hears_at_once_that_he_may_stop(desk: Desk) -> None:
    desk.speed = MockSpeed(tflops=1e-6)  # a step takes years
    request_id = submit(desk.url)
    assert pop(desk.redis) == request_id

    def cancel() -> None:
        eventually(lambda: desk.heartbeat.current_run)
        assert desk.heartbeat.current_run
        desk.heartbeat.current_run.cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    desk.runner(FakeEngine(0)).run(request_id)
    canceller.join()
    job = find(desk.url, request_id)
    assert (job.error_code, job.step) == ("cancelled", 0)


def test_a_record_has_the_warnings_of_its_video_then_those_of_its_engine(desk: Desk) -> None:
    job = desk.run(Lossy(0))
    assert job.precision == "bf16"
    assert job.warnings == [
        "The prompt was cut.",
        "The speed mode fp8 is on, which changes the picture.",
        "The speed mode step_cache is on, which changes the picture.",
    ]


def test_there_is_mostly_nothing_to_warn_of(desk: Desk) -> None:
    assert desk.run(FakeEngine(0)).warnings == []


def test_a_worker_that_must_stop_beats_for_its_run_and_counts_no_more(desk: Desk) -> None:
    beats: list[tuple[list[str], list[str]]] = []

    def beat(_step: int) -> None:
        desk.heartbeat._beat()
        leases = [str(name) for name in desk.redis.zrange(keyspace.LEASES, 0, -1)]
        beats.append(([worker.state for worker in fleet(desk.redis)], leases))
        desk.stop.draining = True

    job = desk.run(Hooked(beat))
    assert beats[0] == (["running"], [job.request_id])
    assert beats[1] == (["draining"], [job.request_id])
    assert job.status is Status.COMPLETED


def test_an_id_that_is_not_queued_is_left_alone(desk: Desk) -> None:
    done = desk.run(Hooked())
    engine = Hooked()
    for request_id in (done.request_id, "never-made"):
        desk.runner(engine).run(request_id)
        desk.runner(engine).requeue_popped(request_id)
    assert engine.steps == 0
    assert find(desk.url, done.request_id) == done


def test_a_planted_id_writes_no_file_elsewhere(desk: Desk, tmp_path: Path) -> None:
    job = desk.run(Hooked())
    escape = "../stolen"
    desk.redis.copy(keyspace.record(job.request_id), keyspace.record(escape))
    desk.redis.hset(keyspace.record(escape), mapping={"status": "QUEUED", "attempt": 0})
    desk.runner(Hooked()).run(escape)
    assert desk.redis.hget(keyspace.record(escape), "status") == "FAILED"
    assert desk.files() == [job.file_name]
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
