"""A run whose prompt or frames moderation blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from tests.support.jobs import find, pop, submit
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Status
from worker.runtime.mock_outcome import BUG_TEXT
from worker.store.worker_side import Recovery


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
