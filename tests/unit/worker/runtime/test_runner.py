"""One run in this process: the fake engine, the real store, real files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from redis import Redis
from structlog.testing import capture_logs

from models.engine import Checkpoints, Clip, Engine, OnStep, Previews, Traits
from models.errors import EngineBrokenError
from models.mock.card_speed import AT_ONCE, MockSpeed
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from models.params import GenerateParams
from tests.support.jobs import end_lease, find, live, pop, submit, waiting
from tests.support.stack import eventually
from worker.broker.health import BrokerLog
from worker.errors import BrokerUnavailableError
from worker.job import Job, Stage, Status
from worker.outputs.local import LocalOutputs
from worker.process.shutdown import Stop
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.mock_outcome import BUG_TEXT
from worker.runtime.reconciler import Reconciler
from worker.runtime.run import Run
from worker.runtime.runner import Runner
from worker.store import keyspace
from worker.store.fleet import fleet
from worker.store.worker_side import Lease, Recovery, Result, WorkerStore


class Hooked(FakeEngine):
    """Calls `at_step` instead of sleeping, and `at_end` after the last frame."""

    def __init__(
        self,
        at_step: Callable[[int], object] = lambda _: None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(0, self._count)
        self.steps = 0
        self._at_step = at_step
        self._at_end = at_end

    def _count(self, _seconds: float) -> None:
        self.steps += 1
        self._at_step(self.steps)

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
    ) -> Clip:
        clip = super().generate(params, on_step, checkpoints, previews)
        return replace(clip, frames=self._frames(clip))

    def _frames(self, clip: Clip) -> Iterator[bytes]:
        yield from clip.frames
        self._at_end()


class Stubborn(Hooked):
    """Goes on whatever a step raises, as code with a bare `except Exception` does."""

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
    ) -> Clip:
        def swallow(step: int, total: int) -> None:
            try:
                on_step(step, total)
            except Exception:  # noqa: BLE001
                time.sleep(0)

        return super().generate(params, swallow, checkpoints, previews)


class Desk:
    """A worker without its process."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.redis, self.url = redis, url
        self.folder = folder
        self.outputs = LocalOutputs(folder)
        self.store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
        self.moderation = Moderation()
        self.checkpoint_steps = self.preview_steps = 0
        self.speed = AT_ONCE
        self.stop = Stop()
        reconciler = Reconciler(self.store, lease_seconds=10)
        self.heartbeat = Heartbeat(
            live("ann"), self.store, reconciler, BrokerLog(url), stall_seconds=60, stop=self.stop
        )

    def runner(self, engine: Engine, run_seconds: float = 60) -> Runner:
        return Runner(
            worker="ann",
            engine=engine,
            store=self.store,
            outputs=self.outputs,
            heartbeat=self.heartbeat,
            moderation=self.moderation,
            run_seconds=run_seconds,
            checkpoint_steps=self.checkpoint_steps,
            preview_steps=self.preview_steps,
            speed=self.speed,
            stop=self.stop,
        )

    def run(
        self,
        engine: Engine,
        scenario: str = "",
        *,
        prompt: str = "a pond",
        run_seconds: float = 60,
    ) -> Job:
        """A new request, after its run."""
        request_id = submit(self.url, prompt, scenario=scenario, frames=3)
        assert pop(self.redis) == request_id
        self.runner(engine, run_seconds).run(request_id)
        return find(self.url, request_id)

    def take_away(self) -> Recovery | None:
        """Take the worker for dead, and its request from it."""
        (request_id,) = self.redis.zrange(keyspace.LEASES, 0, -1)
        end_lease(self.redis, str(request_id))
        return self.store.reap(str(request_id))

    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()] if self.folder.exists() else []


@pytest.fixture
def desk(redis: Redis, redis_url: str, tmp_path: Path) -> Desk:
    return Desk(redis, redis_url, tmp_path / "outputs")


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
        ) -> Clip:
            note()
            return super().generate(params, on_step, checkpoints, previews)

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
    frames = run.checked(iter([b"one", b"two"]))
    stages = [run.stage for _ in frames]
    assert [*stages, run.stage] == [Stage.DECODING, Stage.DECODING, Stage.ENCODING_VIDEO]


def test_a_signal_that_ends_the_encoder_too_requeues_the_request(desk: Desk) -> None:
    def signal_all() -> None:
        desk.stop.ask()
        (encoder,) = (one for one in psutil.Process().children() if "ffmpeg" in one.name())
        encoder.terminate()

    again = desk.run(Hooked(at_end=signal_all))
    assert (again.status, again.attempt) == (Status.QUEUED, 0)
    assert waiting(desk.redis) == [again.request_id]


def test_a_beat_shows_step_and_stage_and_another_attempt_begins_without(desk: Desk) -> None:
    shown: list[Job] = []

    def look(step: int) -> None:
        desk.heartbeat._beat()
        (request_id,) = map(str, desk.redis.zrange(keyspace.LEASES, 0, -1))
        shown.append(find(desk.url, request_id))
        if step == 3:
            desk.take_away()
            desk.heartbeat._beat()

    again = desk.run(Hooked(look))
    assert [(job.step, job.stage) for job in shown] == [
        (step, Stage.DENOISING) for step in range(3)
    ]
    assert (again.status, again.step, again.stage) == (Status.QUEUED, 0, Stage.QUEUED)


@pytest.mark.parametrize("how", ["ended", "lost"])
def test_a_preview_goes_with_the_run(desk: Desk, how: str) -> None:
    desk.preview_steps = 2
    kept: list[list[object]] = []

    def look(step: int) -> None:
        desk.heartbeat._beat()
        kept.append([desk.redis.get(key) for key in desk.redis.keys("mochi:preview:*")])
        if step == 5 and how == "lost":
            desk.take_away()
            desk.heartbeat._beat()

    job = desk.run(Hooked(look))
    assert job.preview_step is None
    assert desk.redis.keys("mochi:preview:*") == []
    # It is looked at before a step, so the picture of step 2 is there before the third.
    assert kept[:2] == [[], []]
    assert all(kept[2:5])
    assert kept[2] == kept[3] != kept[4]


def test_no_preview_is_shown_where_frames_are_moderated(desk: Desk) -> None:
    class Judge:
        def blocks(self, frame: bytes, width: int, height: int) -> str | None:
            return None if len(frame) == 3 * width * height else "odd"

    desk.preview_steps = 1
    desk.moderation = Moderation(frame_judge=Judge())
    seen: list[object] = []
    desk.run(
        Hooked(
            lambda _: seen.append(desk.heartbeat.current_run and desk.heartbeat.current_run.preview)
        )
    )
    assert seen == [None] * 10


def test_a_run_that_is_not_ours_any_more_shows_nothing(desk: Desk) -> None:
    request_id = submit(desk.url)
    pop(desk.redis)
    assert desk.store.start(Lease(request_id, "a-run"), "ann")
    desk.store.preview(Lease(request_id, "another"), 5, "data:")
    assert find(desk.url, request_id).preview_step is None
    assert desk.redis.keys("mochi:preview:*") == []


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
    ) -> Clip:
        clip = super().generate(params, on_step, checkpoints, previews)
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
        ) -> Clip:
            clip = super().generate(params, on_step, checkpoints, previews)
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


class Judge:
    """Blocks every prompt with `bomb`, and frames from the one with the number `bad` on."""

    def __init__(self, bad: int = 1000, at_prompt: Callable[[], object] = lambda: None) -> None:
        self.bad = bad
        self.at_prompt = at_prompt
        self.frames = 0
        self.moderation = Moderation({"judge": self}, _Frames(self), 160)

    def blocks(self, prompt: str) -> str | None:
        self.at_prompt()
        return "violence" if "bomb" in prompt else None


class _Frames:
    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def blocks(self, frame: bytes, width: int, height: int) -> str | None:
        assert len(frame) == width * height * 3
        self._judge.frames += 1
        return "nsfw" if self._judge.frames >= self._judge.bad else None


def test_a_blocked_prompt_never_reaches_the_engine(desk: Desk) -> None:
    desk.moderation = Judge().moderation
    engine = Hooked()
    with capture_logs() as log:
        job = desk.run(engine, prompt="a bomb, and more")
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "content_blocked", 1)
    assert job.error == "Moderation has blocked the prompt: violence."
    assert (engine.steps, job.step, job.file_size) == (0, 0, 0)
    assert desk.files() == []
    assert desk.heartbeat.current_run is None
    (blocked,) = (line for line in log if line["event"] == "run.blocked")
    assert (blocked["stage"], blocked["category"]) == ("prompt", "violence")
    assert "bomb" not in str(log)


def test_a_negative_prompt_is_not_judged(desk: Desk) -> None:
    desk.moderation = Judge().moderation
    request_id = submit(desk.url, "a pond", negative_prompt="a bomb", frames=3)
    pop(desk.redis)
    desk.runner(FakeEngine(0)).run(request_id)
    assert find(desk.url, request_id).status is Status.COMPLETED


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_blocked_frame_leaves_nothing_behind(desk: Desk, bad: int) -> None:
    judge = Judge(bad)
    desk.moderation = judge.moderation
    desk.checkpoint_steps = 5
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "content_blocked")
    assert job.error == "Moderation has blocked the frames: nsfw."
    assert judge.frames == bad
    assert desk.files() == []


def test_a_run_that_goes_on_from_a_checkpoint_is_judged_at_both_stages(desk: Desk) -> None:
    def lose(step: int) -> None:
        if step == 7:
            desk.take_away()
            desk.heartbeat._beat()

    judge = Judge()
    desk.moderation = judge.moderation
    desk.checkpoint_steps = 5
    request_id = desk.run(Hooked(lose)).request_id
    assert desk.files() == [f"{request_id}.checkpoint"]
    asked: list[None] = []
    judge.at_prompt, judge.bad = lambda: asked.append(None), 3
    assert pop(desk.redis) == request_id
    engine = Hooked()
    desk.runner(engine).run(request_id)
    job = find(desk.url, request_id)
    assert (job.error_code, job.attempt, len(asked)) == ("content_blocked", 2, 1)
    assert 0 < engine.steps < job.params.steps
    assert desk.files() == []


def test_a_classifier_that_fails_blocks_the_request(desk: Desk) -> None:
    def fail() -> None:
        raise ZeroDivisionError(BUG_TEXT)

    desk.moderation = Judge(at_prompt=fail).moderation
    engine = Hooked()
    job = desk.run(engine)
    assert (job.status, job.error_code) == (Status.FAILED, "internal")
    assert job.error == "The worker failed on this request; its log says why."
    assert engine.steps == 0
    assert desk.files() == []


def test_a_judge_of_frames_that_fails_publishes_nothing(desk: Desk) -> None:
    class Broken:
        def blocks(self, frame: bytes, width: int, height: int) -> str | None:
            raise ZeroDivisionError(len(frame), width, height)

    desk.moderation = Moderation({}, Broken(), 2)
    job = desk.run(Hooked())
    assert (job.status, job.error_code) == (Status.FAILED, "internal")
    assert desk.files() == []


def test_a_run_that_lost_its_lease_while_it_was_judged_goes_no_further(desk: Desk) -> None:
    def lose() -> None:
        assert desk.take_away() is Recovery.REQUEUED
        desk.heartbeat._beat()

    desk.moderation = Judge(at_prompt=lose).moderation
    for prompt in ("a pond", "a bomb"):
        engine = Hooked()
        job = desk.run(engine, prompt)
        assert (job.status, engine.steps) == (Status.QUEUED, 0)
        assert pop(desk.redis) == job.request_id
    assert desk.files() == []


def test_a_cancel_while_a_prompt_is_judged_is_obeyed_before_the_first_step(desk: Desk) -> None:
    def cancel() -> None:
        assert desk.heartbeat.current_run
        desk.heartbeat.current_run.cancelled.set()

    desk.moderation = Judge(at_prompt=cancel).moderation
    engine = Hooked()
    job = desk.run(engine)
    assert (job.status, job.error_code, engine.steps) == (Status.FAILED, "cancelled", 0)


def test_only_an_engine_at_work_can_hang() -> None:
    run = Run(Lease("an-id", "run"), 60, Stop())
    with run.watched():
        time.sleep(0.01)
        assert run.silent_seconds() >= 0.01
    assert run.silent_seconds() == 0
