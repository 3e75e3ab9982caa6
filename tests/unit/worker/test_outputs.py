from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from worker.errors import StorageError
from worker.outputs import LocalOutputs

REQUEST = "0b6f4a52-1f43-4c5f-9d57-000000000000"
NAME = LocalOutputs.name(REQUEST, "0123456789ab")
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
    LocalOutputs.name("../../../../../../../../../secret/x", "0123456789ab"),
    LocalOutputs.name(REQUEST, "../x"),
    NAME.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outputs"


@pytest.fixture
def outputs(folder: Path) -> LocalOutputs:
    return LocalOutputs(folder)


def test_a_video_appears_whole_when_it_is_published(outputs: LocalOutputs, folder: Path) -> None:
    draft = outputs.draft(NAME)
    draft.write_bytes(b"half of")
    with pytest.raises(StorageError, match="gone"):
        outputs.path(NAME)
    draft.write_bytes(b"the whole video")
    assert outputs.publish(NAME) == 15
    assert outputs.path(NAME).read_bytes() == b"the whole video"
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_the_folder_is_for_its_owner_only(outputs: LocalOutputs, folder: Path) -> None:
    outputs.draft(NAME)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_before_the_first_draft(outputs: LocalOutputs, folder: Path) -> None:
    assert outputs.sweep(lambda _: False, older_than=0) == 0
    outputs.remove(NAME)
    assert not folder.exists()


def test_two_runs_of_a_request_have_two_files(outputs: LocalOutputs) -> None:
    request_id = str(uuid4())
    names = [LocalOutputs.name(request_id, uuid4().hex[:12]) for _ in range(2)]
    for name in names:
        outputs.draft(name).write_text(name)
        outputs.publish(name)
    assert [outputs.path(name).read_text() for name in names] == names


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_is_not_one_of_ours_leads_nowhere(
    outputs: LocalOutputs, folder: Path, name: str
) -> None:
    folder.mkdir(parents=True)
    before = sorted(folder.parent.parent.rglob("*"))
    for use in (outputs.path, outputs.draft, outputs.publish, outputs.remove):
        with pytest.raises(StorageError):
            use(name)
    assert sorted(folder.parent.parent.rglob("*")) == before


def test_a_link_is_no_video(outputs: LocalOutputs, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = outputs.draft(NAME).with_name(NAME)
    link.symlink_to(secret)
    with pytest.raises(StorageError, match="gone"):
        outputs.path(NAME)
    outputs.remove(NAME)
    assert secret.read_text() == "secret"
    assert not link.is_symlink()


def test_a_folder_is_no_video(outputs: LocalOutputs) -> None:
    outputs.draft(NAME).with_name(NAME).mkdir()
    with pytest.raises(StorageError, match="gone"):
        outputs.path(NAME)


def test_a_draft_that_vanished_cannot_be_published(outputs: LocalOutputs, folder: Path) -> None:
    outputs.draft(NAME)
    with pytest.raises(StorageError, match="The video cannot be kept: No such file"):
        outputs.publish(NAME)
    assert list(folder.iterdir()) == []


def test_a_video_that_the_disk_refuses_is_not_there(outputs: LocalOutputs, folder: Path) -> None:
    outputs.draft(NAME).write_bytes(b"video")
    (folder / NAME).mkdir()  # so that the draft cannot have its name
    with pytest.raises(StorageError, match="The video cannot be kept: Is a directory"):
        outputs.publish(NAME)
    assert not outputs.draft(NAME).exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="The folder for videos cannot be made: Not a dir"):
        LocalOutputs(tmp_path / "file" / "outputs").draft(NAME)


def test_removing_takes_the_video_and_its_draft(outputs: LocalOutputs, folder: Path) -> None:
    draft = outputs.draft(NAME)
    draft.touch()
    draft.with_name(NAME).touch()
    outputs.remove(NAME)
    outputs.remove(NAME)
    assert list(folder.iterdir()) == []


def test_a_sweep_asks_for_each_old_file_of_ours_and_counts_what_it_took(
    outputs: LocalOutputs, folder: Path
) -> None:
    other = NAME.replace("0b6f", "ffff")
    for name in (NAME, NAME + ".part", other):
        path = outputs.draft(NAME).with_name(name)
        path.touch()
        os.utime(path, (1, 1))
    asked: list[str] = []

    def is_kept(request_id: str) -> bool:
        asked.append(request_id)
        return request_id != REQUEST

    assert outputs.sweep(is_kept, older_than=60) == 2
    assert set(asked) == {REQUEST, REQUEST.replace("0b6f", "ffff")}
    assert [path.name for path in folder.iterdir()] == [other]
