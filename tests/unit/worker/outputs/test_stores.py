"""What every store of videos does, in a folder and in a bucket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx2
import pytest

from models.request.params import STILLS, Format
from worker.errors import StorageError
from worker.outputs.base import CHUNK_BYTES, MARKER, Outputs, still_name, video_name
from worker.outputs.factory import open_outputs
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tests.support.services.s3 import ObjectStore

REQUEST = "0b6f4a52-1f43-4c5f-9d57-000000000000"
NAME = video_name(REQUEST, "0123456789ab")
CHECKPOINT = f"{REQUEST}.checkpoint"
PREFIX = "some/videos"
POSTER = still_name(NAME, "poster")
ESCAPES = [
    "../" + NAME,
    "/etc/" + NAME,
    "sub/" + NAME,
    NAME + "/../../secret",
    NAME + "\n",
    NAME + ".part",
    "..",
    "",
    "key",
    CHECKPOINT,
    video_name("../../../../../../../../../secret/x", "0123456789ab"),
    video_name(REQUEST, "../x"),
    NAME.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
    NAME.replace(".mp4", ".avi"),
    NAME.replace(".mp4", ".jpg"),
    POSTER.replace("poster", "other"),
    POSTER + ".part",
]
ESCAPING_IDS = [
    "..",
    "../../key",
    "",
    REQUEST + "\n",
    REQUEST + "/../x",
    f"../{REQUEST[3:]}",
    "é" * 36,
]


class Shelf:
    """A store, and a look at what is in it from outside."""

    outputs: Outputs
    drafts: Path

    def names(self) -> list[str]:
        """What is kept, drafts left out."""
        raise NotImplementedError

    def plant(self, name: str) -> None:
        """As if it had always been there."""
        raise NotImplementedError

    def let_age(self) -> None:
        """Make all that is there older than two seconds."""
        for path in self.drafts.iterdir():
            os.utime(path, (1, 1))

    def publish(self, data: bytes, name: str = NAME) -> int:
        self.outputs.draft(name).write_bytes(data)
        return self.outputs.publish(name)

    def read(self, name: str = NAME, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join(self.outputs.read(name, start, stop))


class Disk(Shelf):
    def __init__(self, folder: Path) -> None:
        self.drafts = folder / "outputs"
        self.outputs = open_outputs(WorkerSettings(data_dir=folder), patience_seconds=1)

    def names(self) -> list[str]:
        files = self.drafts.iterdir() if self.drafts.exists() else ()
        return sorted(path.name for path in files if path.suffix != ".part")

    def plant(self, name: str) -> None:
        self.drafts.mkdir(exist_ok=True)
        (self.drafts / name).write_bytes(b"video")


class Bucket(Shelf):
    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.drafts = folder / "outputs"
        self.store = store
        self.bucket = store.new_bucket()
        settings = WorkerSettings(data_dir=folder, outputs=f"s3://{self.bucket}/{PREFIX}")
        self.outputs = open_outputs(settings, patience_seconds=20)

    def names(self) -> list[str]:
        keys = self.store.keys(self.bucket)
        return sorted(key.removeprefix(PREFIX + "/") for key in keys)

    def plant(self, name: str) -> None:
        self.store.put(self.bucket, f"{PREFIX}/{name}", b"video")

    def let_age(self) -> None:
        super().let_age()
        time.sleep(3.1)  # a bucket's clock cannot be set, and has whole seconds


@pytest.fixture(params=["disk", "s3"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    folder = tmp_path / "data"
    folder.mkdir()
    if request.param == "disk":
        return Disk(folder)
    return Bucket(folder, request.getfixturevalue("object_store"))


def test_a_video_appears_whole_when_it_is_published(shelf: Shelf) -> None:
    draft = shelf.outputs.draft(NAME)
    draft.write_bytes(b"half of")
    with pytest.raises(StorageError, match="gone"):
        shelf.read()
    assert shelf.names() == []
    draft.write_bytes(b"the whole video")
    assert shelf.outputs.publish(NAME) == 15
    assert shelf.read() == b"the whole video"
    assert shelf.names() == [NAME]
    assert not draft.exists()


def test_a_video_of_many_chunks_is_read_whole_and_in_parts(shelf: Shelf) -> None:
    video = os.urandom(2 * CHUNK_BYTES + 100)
    assert shelf.publish(video) == len(video)
    assert shelf.read() == video
    for start, stop in [
        (0, 1),
        (0, len(video)),
        (5, CHUNK_BYTES + 7),
        (len(video) - 1, len(video)),
    ]:
        assert shelf.read(NAME, start, stop) == video[start:stop]
    assert shelf.read(NAME, len(video) - 3) == video[-3:]


def test_two_runs_of_a_request_have_two_videos(shelf: Shelf) -> None:
    names = [video_name(REQUEST, uuid4().hex[:12]) for _ in range(2)]
    for name in names:
        shelf.publish(name.encode(), name)
    assert [shelf.read(name).decode() for name in names] == names


def test_a_video_that_is_not_there_is_gone(shelf: Shelf) -> None:
    with pytest.raises(StorageError, match="The video is gone"):
        shelf.outputs.read(NAME)


def test_a_draft_that_vanished_cannot_be_published(shelf: Shelf) -> None:
    shelf.outputs.draft(NAME)
    with pytest.raises(StorageError, match="The video cannot be kept: No such file"):
        shelf.outputs.publish(NAME)
    assert shelf.names() == []


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_is_not_one_of_ours_leads_nowhere(shelf: Shelf, name: str) -> None:
    shelf.plant("stays")
    before = sorted(shelf.drafts.parent.parent.rglob("*"))
    uses: list[Callable[[str], object]] = [
        shelf.outputs.read,
        shelf.outputs.draft,
        shelf.outputs.publish,
        shelf.outputs.remove,
        lambda name: shelf.outputs.link(name, 60),
        lambda name: shelf.outputs.save_still(name, b"picture"),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="The video is gone"):
            use(name)
    assert sorted(shelf.drafts.parent.parent.rglob("*")) == before
    assert shelf.names() == ["stays"]


def test_removing_takes_the_video_and_its_draft_and_nothing_else(shelf: Shelf) -> None:
    other = video_name(REQUEST, "f" * 12)
    shelf.publish(b"other", other)
    shelf.publish(b"video")
    draft = shelf.outputs.draft(NAME)
    draft.touch()
    shelf.outputs.remove(NAME)
    shelf.outputs.remove(NAME)
    assert shelf.names() == [other]
    assert not draft.exists()


@pytest.mark.parametrize("format_", ["webm", "gif"])
def test_a_video_of_another_format_is_kept_as_any(shelf: Shelf, format_: Format) -> None:
    name = video_name(REQUEST, "0123456789ab", format_)
    shelf.publish(b"video", name)
    assert shelf.names() == [name]
    assert shelf.read(name, 2) == b"deo"


def test_a_still_is_kept_whole_replaced_whole_and_goes_with_its_video(shelf: Shelf) -> None:
    names = [still_name(NAME, still) for still in STILLS]
    other = still_name(video_name(REQUEST, "f" * 12), "poster")
    for name in (*names, other):
        shelf.outputs.save_still(name, b"half")
        shelf.outputs.save_still(name, name.encode())
    shelf.publish(b"video")
    assert shelf.names() == sorted([NAME, *names, other])
    assert [shelf.read(name).decode() for name in names] == names
    assert shelf.read(names[0], 3, 5) == names[0][3:5].encode()
    shelf.outputs.remove(NAME)
    assert shelf.names() == [other]


# Checkpoints


def test_a_checkpoint_is_read_back_until_it_is_replaced_or_removed(shelf: Shelf) -> None:
    assert shelf.outputs.load_checkpoint(REQUEST) is None
    for data in (b"step 1", os.urandom(3_000_000), b""):
        shelf.outputs.save_checkpoint(REQUEST, data)
        assert shelf.outputs.load_checkpoint(REQUEST) == data
        assert shelf.names() == [CHECKPOINT]
    shelf.outputs.remove_checkpoint(REQUEST)
    shelf.outputs.remove_checkpoint(REQUEST)
    assert shelf.outputs.load_checkpoint(REQUEST) is None
    assert shelf.names() == []


@pytest.mark.parametrize("request_id", ESCAPING_IDS)
def test_a_checkpoint_of_an_id_that_is_not_one_of_ours_leads_nowhere(
    shelf: Shelf, request_id: str
) -> None:
    with pytest.raises(StorageError):
        shelf.outputs.save_checkpoint(request_id, b"data")
    assert shelf.outputs.load_checkpoint(request_id) is None
    shelf.outputs.remove_checkpoint(request_id)
    assert shelf.names() == []


# Sweeping


def test_a_sweep_takes_what_is_old_and_of_no_request_and_counts_it(shelf: Shelf) -> None:
    gone, kept = REQUEST, REQUEST.replace("0b6f", "ffff")
    of_a_run = [".mp4", ".webm", ".gif", "-poster.jpg", "-last_frame.jpg"]
    old = [*(f"{gone}-{'0' * 12}{ending}" for ending in of_a_run), f"{gone}.checkpoint"]
    others = [
        f"{kept}-{'0' * 12}.mp4",
        f"{kept}.checkpoint",
        "holiday.mp4",
        f"{gone}-{'0' * 12}.jpg",
        f"x{gone}.checkpoint",
        f"{gone}-{'0' * 12}.mp4.bak",
    ]
    for name in old + others:
        shelf.plant(name)
    drafts = [shelf.outputs.draft(video_name(its, "1" * 12)) for its in (gone, kept)]
    for draft in drafts:
        draft.touch()
    shelf.let_age()
    fresh = f"{gone}-{'2' * 12}.mp4"
    shelf.publish(b"video", fresh)
    asked: list[str] = []

    def is_kept(request_id: str) -> bool:
        asked.append(request_id)
        return request_id == kept

    assert shelf.outputs.sweep(is_kept, older_than=2) == len(old) + 1
    assert set(asked) == {gone, kept}
    assert shelf.names() == sorted([*others, fresh])
    assert [draft.exists() for draft in drafts] == [False, True]
    assert shelf.outputs.sweep(is_kept, older_than=2) == 0


def test_nothing_is_made_before_the_first_draft(shelf: Shelf) -> None:
    assert shelf.outputs.sweep(lambda _: False, older_than=0) == 0
    shelf.outputs.remove(NAME)
    assert not shelf.drafts.exists()
    assert shelf.names() == []


def test_a_check_of_what_can_be_used_leaves_only_a_mark_that_stays(shelf: Shelf) -> None:
    shelf.outputs.check()
    assert shelf.names() == [MARKER]
    assert list(shelf.drafts.glob("*.part")) == []
    mark = shelf.outputs.mark()
    assert len(mark) == 32
    shelf.outputs.check()
    shelf.let_age()
    shelf.outputs.sweep(lambda _: False, older_than=2)
    assert shelf.outputs.mark() == mark


# Links


def test_only_a_bucket_has_links_of_its_own_and_they_serve_ranges(shelf: Shelf) -> None:
    shelf.publish(b"the whole video")
    link = shelf.outputs.link(NAME, 60.4)
    if isinstance(shelf, Disk):
        assert link is None
        return
    assert link
    assert "X-Amz-Expires=60&" in link
    whole = httpx2.get(link)
    assert (whole.status_code, whole.content) == (200, b"the whole video")
    assert whole.headers["content-type"] == "video/mp4"
    part = httpx2.get(link, headers={"range": "bytes=4-8"})
    assert (part.status_code, part.content) == (206, b"whole")
    week = shelf.outputs.link(NAME, 1e9)
    assert week
    assert "X-Amz-Expires=604800&" in week  # the longest that S3 signs


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (video_name(REQUEST, "0" * 12, "webm"), "video/webm"),
        (video_name(REQUEST, "0" * 12, "gif"), "image/gif"),
        (POSTER, "image/jpeg"),
    ],
)
def test_a_bucket_says_what_each_file_is(shelf: Shelf, name: str, kind: str) -> None:
    if isinstance(shelf, Disk):
        return  # a folder says nothing of its files
    if kind == "image/jpeg":
        shelf.outputs.save_still(name, b"picture")
    else:
        shelf.publish(b"video", name)
    link = shelf.outputs.link(name, 60)
    assert link
    assert httpx2.get(link).headers["content-type"] == kind
