"""Where commands write their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.output import new_file
from server.errors import OutputError


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    names = []
    for text in ("first", "second", "third"):
        with new_file(tmp_path / "mochi.mp4") as path:
            path.write_text(text)
        names.append(path.name)
    assert names == ["mochi.mp4", "mochi-2.mp4", "mochi-3.mp4"]
    assert (tmp_path / "mochi.mp4").read_text() == "first"


def test_two_commands_at_the_same_time_write_two_files(tmp_path: Path) -> None:
    with new_file(tmp_path / "mochi.mp4") as one, new_file(tmp_path / "mochi.mp4") as two:
        assert one != two


def test_without_a_video_no_file_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "mochi.mp4"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"), new_file(tmp_path / "absent" / "mochi.mp4"):
        pass
