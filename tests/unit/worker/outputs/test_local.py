"""What a folder of videos does, and no bucket."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from worker.broker.embedded import EmbeddedBroker
from worker.errors import OutputsUnusableError, StorageError
from worker.outputs.base import MARKER, still_name, video_name
from worker.outputs.local import LocalOutputs

REQUEST = "0b6f4a52-1f43-4c5f-9d57-000000000000"
NAME = video_name(REQUEST, "0123456789ab")
POSTER = still_name(NAME, "poster")
CHECKPOINT = f"{REQUEST}.checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outputs"


@pytest.fixture
def outputs(folder: Path) -> LocalOutputs:
    return LocalOutputs(folder)


def test_folder_and_checkpoints_are_for_their_owner_only(
    outputs: LocalOutputs, folder: Path
) -> None:
    outputs.save_checkpoint(REQUEST, b"data")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / CHECKPOINT).stat().st_mode & 0o777 == 0o600


def test_a_link_is_no_video_and_no_checkpoint(
    outputs: LocalOutputs, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = outputs.draft(NAME).with_name(NAME)
    link.symlink_to(secret)
    (folder / CHECKPOINT).symlink_to(secret)
    with pytest.raises(StorageError, match="gone"):
        outputs.read(NAME)
    assert outputs.load_checkpoint(REQUEST) is None
    outputs.save_checkpoint(REQUEST, b"data")
    outputs.remove(NAME)
    assert secret.read_text() == "secret"
    assert not link.is_symlink()


def test_a_folder_is_no_video(outputs: LocalOutputs) -> None:
    outputs.draft(NAME).with_name(NAME).mkdir()
    with pytest.raises(StorageError, match="gone"):
        outputs.read(NAME)


def test_what_the_disk_refuses_is_not_there(outputs: LocalOutputs, folder: Path) -> None:
    outputs.draft(NAME).write_bytes(b"video")
    (folder / NAME).mkdir()  # so that the draft cannot have its name
    (folder / CHECKPOINT).mkdir()
    with pytest.raises(StorageError, match="The video cannot be kept: Is a directory"):
        outputs.publish(NAME)
    with pytest.raises(StorageError, match="The checkpoint cannot be kept: Is a directory"):
        outputs.save_checkpoint(REQUEST, b"data")
    assert outputs.load_checkpoint(REQUEST) is None
    outputs.remove_checkpoint(REQUEST)
    assert sorted(path.name for path in folder.iterdir()) == sorted([NAME, CHECKPOINT])


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outputs = LocalOutputs(tmp_path / "file" / "outputs")
    for use in (
        lambda: outputs.draft(NAME),
        lambda: outputs.save_checkpoint(REQUEST, b"data"),
        lambda: outputs.save_still(POSTER, b"data"),
    ):
        with pytest.raises(StorageError, match="The folder for videos cannot be made: Not a dir"):
            use()
    with pytest.raises(OutputsUnusableError, match=r"Not a directory\. Choose .* MOCHI_DATA_DIR"):
        outputs.check()


def test_a_draft_of_a_checkpoint_that_a_kill_left_is_swept(
    outputs: LocalOutputs, folder: Path
) -> None:
    outputs.save_checkpoint(REQUEST, b"data")
    (folder / f"{CHECKPOINT}.{'a' * 12}.part").touch()
    assert outputs.sweep(lambda _: False, older_than=-1) == 2
    assert list(folder.iterdir()) == []


def test_a_data_folder_that_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    folders = tmp_path / "above" / "outputs first", tmp_path / "broker first"
    broker = EmbeddedBroker(folders[1])
    before = os.umask(0)
    try:
        LocalOutputs(folders[0] / "outputs").make_folder()
        broker.start()
    finally:
        os.umask(before)
    broker.stop()
    made = *folders, tmp_path / "above"
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in made] == [0o700] * 3


def test_a_mark_that_a_full_disk_has_left_empty_is_written_by_the_next_check(folder: Path) -> None:
    outputs = LocalOutputs(folder)
    outputs.make_folder()
    (folder / MARKER).touch()
    assert len(outputs.mark()) == 32
