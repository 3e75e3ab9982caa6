"""Weights on the disk: found by name and commit, verified by the manifest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.settings import default_data_dir
from models.weights.folder import MANIFEST, absent, find, is_hub_id, locate, pull_command
from models.weights.pull import verify
from tests.support.models.pulls import SMALL, contents, fetch, ignore
from tests.support.services.hub import FIRST, HUB_ID, SECOND, FakeHub
from tests.support.services.hub_files import BIG, LOADED


def test_a_revision_is_what_is_pulled_and_found(hub: FakeHub, tmp_path: Path) -> None:
    second = fetch(hub, tmp_path, SECOND)
    assert second.name == SECOND
    assert find(HUB_ID, FIRST, tmp_path) is None
    first = fetch(hub, tmp_path, FIRST)
    assert find(HUB_ID, FIRST, tmp_path) == first
    assert find(HUB_ID, SECOND, tmp_path) == second


def test_without_a_revision_the_commit_completed_last_is_found(
    hub: FakeHub, tmp_path: Path
) -> None:
    first = fetch(hub, tmp_path, FIRST)
    second = fetch(hub, tmp_path, SECOND)
    assert find(HUB_ID, "", tmp_path) == second
    later = (second / MANIFEST).stat().st_mtime_ns + 1
    os.utime(first / MANIFEST, ns=(later, later))
    assert find(HUB_ID, "", tmp_path) == first


def test_a_folder_is_found_as_it_is_and_anything_else_is_not(tmp_path: Path) -> None:
    assert find(str(tmp_path), "", tmp_path / "data") == tmp_path
    for weights in (HUB_ID, "dummy", "/no/such/folder"):
        assert find(weights, "", tmp_path / "data") is None
    assert is_hub_id(HUB_ID)
    for weights in ("dummy", "/no/such/folder", "../up", "a/b/c", str(tmp_path)):
        assert not is_hub_id(weights)


def test_verify_names_each_changed_missing_and_short_file_and_pull_repairs_them(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path)
    flipped = bytearray(LOADED[BIG])
    flipped[1234] ^= 1
    (folder / BIG).write_bytes(flipped)
    assert find(HUB_ID, "", tmp_path) == folder  # only reading all of it shows that
    (folder / SMALL).unlink()
    (folder / "tokenizer/spiece.model").write_bytes(b"short")
    assert verify(folder, ignore) == [
        "tokenizer/spiece.model: 5 bytes instead of 500",
        f"{BIG}: changed",
        f"{SMALL}: missing",
    ]
    assert find(HUB_ID, "", tmp_path) is None
    assert locate(HUB_ID, "", tmp_path) == folder

    hub.requests.clear()
    hub.main = SECOND
    assert fetch(hub, tmp_path) == folder
    assert contents(folder) == LOADED
    assert hub.sent() == {BIG, SMALL, "tokenizer/spiece.model"}


def test_a_folder_without_a_manifest_cannot_be_verified_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{MANIFEST} in it cannot be read"):
        verify(tmp_path, ignore)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(WeightsError, match="is damaged"):
        verify(tmp_path, ignore)


def test_a_damaged_manifest_counts_as_none_and_is_written_again(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path)
    (folder / MANIFEST).write_text("{")
    assert find(HUB_ID, "", tmp_path) is None
    hub.requests.clear()
    assert fetch(hub, tmp_path) == folder
    assert hub.sent() == set()
    assert find(HUB_ID, "", tmp_path) == folder


def test_a_message_about_absent_weights_names_the_command(tmp_path: Path) -> None:
    assert f"are not in {tmp_path}/weights" in absent(HUB_ID, "", tmp_path)
    assert absent(HUB_ID, "", tmp_path).endswith(f"pull --data-dir {tmp_path}")
    assert "There is no folder MOCHI_WEIGHTS=/nowhere" in absent("/nowhere", "", tmp_path)
    usual = default_data_dir()
    assert absent(HUB_ID, "", usual).endswith("Type: mochi-server weights pull")
    assert pull_command("me/mine", FIRST, usual) == (
        f"mochi-server weights pull --weights me/mine --revision {FIRST}"
    )
    assert pull_command(HUB_ID, "", usual, "bf16") == "mochi-server weights pull --variant bf16"
    assert pull_command(HUB_ID, "", Path("/my disk")).endswith(" pull --data-dir '/my disk'")
