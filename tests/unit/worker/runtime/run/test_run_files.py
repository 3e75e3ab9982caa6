"""A run that makes other files than an MP4: their names, their order, and what a fault leaves."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import ContentBlockedError
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import Moderation
from tests.support.jobs import find, pop, submit
from tests.unit.worker.support.desk import Desk, Hooked
from worker.errors import StorageError
from worker.job import Job, Status
from worker.outputs.base import still_name
from worker.outputs.local import LocalOutputs
from worker.provenance.label import AI_MADE
from worker.provenance.marker import Marker
from worker.store.worker_side import Lease, Result, WorkerStore

FRAMES = 9
STILLS = {"poster": True, "last_frame": True}


def run(desk: Desk, **files: Any) -> Job:
    """A new request for these files, after its run."""
    request_id = desk_submit(desk, **files)
    desk.runner(FakeEngine(0)).run(request_id)
    return find(desk.url, request_id)


def desk_submit(desk: Desk, **files: Any) -> str:
    request_id = submit(desk.url, frames=FRAMES, **files)
    assert pop(desk.redis) == request_id
    return request_id


@pytest.mark.parametrize(
    ("format_", "magic"), [("mp4", b"ftyp"), ("webm", b"webm"), ("gif", b"GIF89a")]
)
def test_a_run_leaves_one_file_of_the_format(desk: Desk, format_: str, magic: bytes) -> None:
    job = run(desk, format=format_)
    assert (job.status, job.warnings, job.stills) == (Status.COMPLETED, [], {})
    assert desk.files() == [job.file_name]
    assert job.file_name.endswith(f".{format_}")
    path = desk.outputs.path(job.file_name)
    assert magic in path.read_bytes()[:100]
    assert path.stat().st_size == job.file_size


def test_stills_lie_beside_the_video_and_the_record_has_their_sizes(desk: Desk) -> None:
    job = run(desk, format="webm", **STILLS)
    names = {still: still_name(job.file_name, still) for still in job.stills}
    assert {*names} == {"poster", "last_frame"}
    assert sorted(desk.files()) == sorted([job.file_name, *names.values()])
    for still, name in names.items():
        path = desk.outputs.path(name)
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"
        assert path.stat().st_size == job.stills[still]
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_made_of_the_frames_does_not_change_them(desk: Desk) -> None:
    """The bytes of the video and of each still are those of a run that was asked for it alone."""
    alone = run(desk), run(desk, poster=True), run(desk, last_frame=True)
    both = run(desk, **STILLS)
    assert read(desk, both.file_name) == read(desk, alone[0].file_name)
    for job, still in ((alone[1], "poster"), (alone[2], "last_frame")):
        (name,) = job.stills
        assert name == still
        assert read(desk, still_name(both.file_name, name)) == read(
            desk, still_name(job.file_name, name)
        )


def read(desk: Desk, name: str) -> bytes:
    return b"".join(desk.outputs.read(name))


def test_all_files_are_there_before_the_record_says_so(desk: Desk) -> None:
    seen: list[int] = []

    class Watched(WorkerStore):
        def complete(self, lease: Lease, result: Result) -> bool:
            seen.append(len(desk.files()))
            return super().complete(lease, result)

    desk.store = Watched(desk.redis, lease_seconds=10, retention_seconds=60)
    run(desk, **STILLS)
    assert seen == [3]


class Refusing(LocalOutputs):
    """Keeps files until the one whose name ends so."""

    refused = ""

    def save_still(self, name: str, data: bytes) -> None:
        if name.endswith(self.refused):
            raise StorageError("The picture cannot be kept: No space left on device")
        super().save_still(name, data)

    def publish(self, name: str) -> int:
        if name.endswith(self.refused):
            raise StorageError("The video cannot be kept: No space left on device")
        return super().publish(name)


@pytest.mark.parametrize("refused", ["-poster.jpg", "-last_frame.jpg", ".mp4"])
def test_a_file_that_cannot_be_kept_fails_the_request_and_no_other_stays(
    desk: Desk, refused: str
) -> None:
    desk.outputs = Refusing(desk.folder)
    desk.outputs.refused = refused
    job = run(desk, **STILLS)
    assert (job.status, job.error_code) == (Status.FAILED, "storage")
    assert "cannot be kept: No space left" in job.error
    assert desk.files() == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["-last_frame.jpg", ".mp4"])
def test_a_worker_that_dies_between_two_files_leaves_only_what_is_swept(
    desk: Desk, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(outputs: LocalOutputs, name: str, data: bytes = b"") -> None:
        if name.endswith(at):
            raise Killed
        kept(outputs, name, data)

    kept = LocalOutputs.save_still
    monkeypatch.setattr(LocalOutputs, "save_still", die)
    monkeypatch.setattr(LocalOutputs, "publish", die)
    request_id = desk_submit(desk, **STILLS)
    with pytest.raises(Killed):
        desk.runner(FakeEngine(0)).run(request_id)
    monkeypatch.undo()
    left = desk.files()
    assert any(name.endswith("-poster.jpg") for name in left)
    assert find(desk.url, request_id).status is Status.PROCESSING
    desk.take_away()
    assert pop(desk.redis) == request_id
    desk.runner(FakeEngine(0)).run(request_id)
    job = find(desk.url, request_id)
    assert (job.status, job.attempt) == (Status.COMPLETED, 2)
    assert desk.outputs.sweep(lambda _: True, older_than=-1) == 0
    assert desk.outputs.sweep(lambda _: False, older_than=-1) == len(left) + 3
    assert desk.files() == []


def test_the_files_of_a_late_run_go_with_it(desk: Desk) -> None:
    def lose(step: int) -> None:
        if step == FRAMES:
            desk.take_away()

    request_id = desk_submit(desk, **STILLS)
    desk.runner(Hooked(lose)).run(request_id)
    assert desk.files() == []


class Judge:
    """Blocks one frame of a clip, counted from 0."""

    def __init__(self, blocked: int) -> None:
        self.blocked = blocked
        self.seen: list[bytes] = []

    def blocks(self, frame: bytes, *_size: int) -> str | None:
        self.seen.append(frame)
        return "odd" if len(self.seen) > self.blocked else None


@pytest.mark.parametrize("files", [{}, STILLS])
def test_a_blocked_video_has_no_still(desk: Desk, files: dict[str, bool]) -> None:
    desk.moderation = Moderation(frame_judge=Judge(1))
    job = run(desk, **files)
    assert (job.error_code, desk.files()) == (ContentBlockedError.code, [])


@pytest.mark.parametrize(("files", "judged"), [({}, 2), ({"last_frame": True}, 2), (STILLS, 3)])
def test_the_frame_of_a_poster_is_judged_beside_the_sample(
    desk: Desk, files: dict[str, bool], judged: int
) -> None:
    judge = Judge(99)
    desk.moderation = Moderation(frame_judge=judge)
    assert run(desk, **files).status is Status.COMPLETED
    assert len(judge.seen) == judged


def test_every_file_of_a_run_is_marked_unless_one_cannot_be(desk: Desk) -> None:
    desk.marker = Marker()
    job = run(desk, format="gif", **STILLS)
    for name in desk.files():
        assert AI_MADE.encode() in read(desk, name)
    assert len(desk.files()) == 3
    assert job.stills["poster"] == len(read(desk, still_name(job.file_name, "poster")))
    desk.marker = Unmarkable()
    failed = run(desk, **STILLS)
    assert (failed.status, failed.error_code) == (Status.FAILED, "storage")
    assert len(desk.files()) == 3


class Unmarkable(Marker):
    """Cannot mark a still."""

    def marked_still(self, *_: object) -> bytes:
        raise StorageError("The video cannot be signed.")
