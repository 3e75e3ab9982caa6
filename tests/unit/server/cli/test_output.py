"""Tables, and where commands write their files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from server.cli import output
from server.cli.output import new_file, whole_file
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


def test_a_file_that_does_not_become_whole_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("whole")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "backup"):
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_of_two_whole_files_at_the_same_time_the_last_one_counts(tmp_path: Path) -> None:
    with whole_file(tmp_path / "backup") as late:
        with whole_file(tmp_path / "backup") as early:
            early.write("early")
        assert (tmp_path / "backup").read_text() == "early"
        late.write("late")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["late"]


@pytest.mark.parametrize(
    ("width", "printed"),
    [
        (30, " name   requests  note \n alice         7       \n bob          12  late \n"),
        (12, "name: alice\nrequests: 7\n\nname: bob\nrequests: 12\nnote: late\n"),
    ],
)
def test_a_table_that_is_too_wide_becomes_a_paragraph_for_each_row(
    monkeypatch: pytest.MonkeyPatch, width: int, printed: str
) -> None:
    narrow = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    monkeypatch.setattr(output, "console", narrow)
    rows = [("alice", 7, ""), ("bob", 12, "late")]
    output.print_table(["name", "requests", "note"], rows, right={"requests"})
    assert narrow.file.getvalue() == printed  # type: ignore[attr-defined]
