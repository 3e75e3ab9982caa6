"""Runs of drafts and of the requests that finish them: the light mock, a real store, real files."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from models.errors import EngineBrokenError
from tests.support.jobs import find, pop, submit
from tests.support.stack import eventually
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Job, Status

DRAFT = {"draft_steps": "4"}
STEPS = 10


def drafted(desk: Desk, engine: Hooked | None = None, scenario: str = "") -> Job:
    return desk.run(engine or Hooked(), scenario, record=DRAFT)


def finish(draft: Job) -> dict[str, str]:
    """Fields of the record of the request that finishes a draft."""
    return {"draft_of": draft.request_id, "first_step": str(draft.draft_steps)}


def video(desk: Desk, job: Job) -> bytes:
    assert job.status is Status.COMPLETED
    return desk.outputs.path(job.file_name).read_bytes()


@pytest.fixture
def undisturbed(desk: Desk) -> bytes:
    return video(desk, desk.run(Hooked()))


@pytest.mark.parametrize("every", [0, 3])
def test_a_finish_runs_the_steps_that_its_draft_left_to_the_same_bytes(
    desk: Desk, undisturbed: bytes, every: int
) -> None:
    desk.checkpoint_steps = every
    engine = Hooked()
    draft = drafted(desk, engine)
    assert engine.steps == 4
    assert video(desk, draft) != undisturbed
    engine = Hooked()
    finished = desk.run(engine, record=finish(draft))
    assert engine.steps == STEPS - 4
    assert video(desk, finished) == undisturbed


def test_a_draft_keeps_its_checkpoint_and_its_finish_removes_only_its_own(desk: Desk) -> None:
    desk.checkpoint_steps = 3
    draft = drafted(desk)
    kept = {draft.file_name, f"{draft.request_id}.checkpoint"}
    assert {*desk.files()} == kept
    finished = desk.run(Hooked(), record=finish(draft))
    assert {*desk.files()} == kept | {finished.file_name}


def test_a_draft_may_be_finished_many_times(desk: Desk, undisturbed: bytes) -> None:
    draft = drafted(desk)
    assert [video(desk, desk.run(Hooked(), record=finish(draft))) for _ in range(2)] == [
        undisturbed
    ] * 2


def test_a_finish_that_lost_its_worker_goes_on_from_its_own_checkpoint(
    desk: Desk, undisturbed: bytes
) -> None:
    desk.checkpoint_steps = 3
    draft = drafted(desk)

    def fall_off_the_bus(step: int) -> None:
        if step == 4:  # the eighth of all
            raise EngineBrokenError("The GPU failed.")

    with pytest.raises(EngineBrokenError):
        desk.run(Hooked(fall_off_the_bus), record=finish(draft))
    desk.take_away()
    request_id, engine = pop(desk.redis), Hooked()
    assert request_id
    desk.runner(engine).run(request_id)
    assert engine.steps == STEPS - 6
    assert video(desk, find(desk.url, request_id)) == undisturbed
    assert f"{request_id}.checkpoint" not in desk.files()


def test_without_the_checkpoint_of_its_draft_a_finish_runs_from_the_start(
    desk: Desk, undisturbed: bytes
) -> None:
    draft = drafted(desk)
    desk.outputs.remove_checkpoint(draft.request_id)
    engine = Hooked()
    with capture_logs() as log:
        finished = desk.run(engine, record=finish(draft))
    assert engine.steps == STEPS
    assert video(desk, finished) == undisturbed
    (event,) = (each for each in log if each["event"] == "checkpoint.missing")
    assert (event["log_level"], event["draft_id"]) == ("warning", draft.request_id)


def test_a_checkpoint_that_does_not_fit_is_passed_over_with_a_warning(
    desk: Desk, undisturbed: bytes
) -> None:
    draft = drafted(desk)
    (desk.folder / f"{draft.request_id}.checkpoint").write_bytes(b"of another card")
    engine = Hooked()
    with capture_logs() as log:
        finished = desk.run(engine, record=finish(draft))
    assert engine.steps == STEPS
    assert video(desk, finished) == undisturbed
    (event,) = (each for each in log if each["event"] == "checkpoint.passed_over")
    assert event["log_level"] == "warning"


@pytest.mark.parametrize("scenario", ["fail", "bug"])
def test_a_draft_that_fails_leaves_no_file(desk: Desk, scenario: str) -> None:
    seen: list[int] = []

    def note(step: int) -> None:
        seen.append(step)

    job = drafted(desk, Hooked(note), scenario)
    assert job.status is Status.FAILED
    assert max(seen) == 2  # halfway through its own steps
    assert desk.files() == []


def test_a_draft_that_fails_after_its_steps_leaves_no_checkpoint(desk: Desk) -> None:
    def fail() -> None:
        assert len(desk.files()) == 2  # with the file that is being written
        raise RuntimeError

    assert drafted(desk, Hooked(at_end=fail)).status is Status.FAILED
    assert not any(name.endswith(".checkpoint") for name in desk.files())


def test_a_draft_that_expires_early_takes_its_checkpoint_along(desk: Desk) -> None:
    drafted(desk, scenario="expire:1")
    assert len(desk.files()) == 2
    assert eventually(lambda: desk.files() == [])


def test_a_draft_shows_the_progress_of_its_own_steps(desk: Desk) -> None:
    shown: list[int] = []

    def look(_step: int) -> None:
        desk.heartbeat._beat()
        shown.append(find(desk.url, request_id).progress)

    request_id = submit(desk.url, record=DRAFT)
    assert pop(desk.redis) == request_id
    desk.runner(Hooked(look)).run(request_id)
    draft = find(desk.url, request_id)
    assert draft.last_step == 4
    assert shown == sorted(shown)
    assert shown[-1] > 30
