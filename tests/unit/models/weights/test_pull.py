"""What a pull brings, and how it goes on after an interruption."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.weights.folder import MANIFEST, find, read_manifest
from models.weights.pull import verify
from tests.support.models.pulls import SMALL, Reports, contents, fetch, ignore, refusal
from tests.support.services.hub import FIRST, HUB_ID, SECOND, FakeHub
from tests.support.services.hub_files import BIG, INDEXES, LOADED, LOADED_IN_BF16, index, shards
from tests.support.stack import eventually

INDEX_BYTES = sum(len(LOADED[name]) for name in INDEXES)
"""Of the files that come before the others."""
TOTAL = sum(map(len, LOADED.values())) - INDEX_BYTES


def test_a_pull_brings_what_mochi_is_loaded_from_and_nothing_else(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path / "data")
    assert folder == tmp_path / "data" / "weights" / "genmo--mochi-1-preview" / FIRST
    assert contents(folder) == LOADED
    assert not list(tmp_path.rglob("escaped.json"))
    assert hub.bytes_sent == {name: len(content) for name, content in LOADED.items()}


def test_a_data_folder_that_a_pull_makes_is_private(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_the_manifest_names_the_commit_and_each_file_with_size_and_checksum(
    hub: FakeHub, tmp_path: Path
) -> None:
    manifest = read_manifest(fetch(hub, tmp_path))
    assert (manifest.hub_id, manifest.commit) == (HUB_ID, FIRST)
    assert {name: file.size for name, file in manifest.files.items()} == {
        name: len(content) for name, content in LOADED.items()
    }
    assert manifest.files[BIG].checksum.startswith("sha256:")
    assert manifest.files[SMALL].checksum == "git:9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_progress_is_counted_in_bytes_up_to_all_of_them(hub: FakeHub, tmp_path: Path) -> None:
    reports = Reports()
    fetch(hub, tmp_path, reports=reports)
    assert reports.bytes["Downloading"][0] == (0, TOTAL)
    assert reports.bytes.pop("Checking what is here")[-1] == (INDEX_BYTES, INDEX_BYTES)
    for counted in reports.bytes.values():
        assert counted[-1] == (TOTAL, TOTAL)
        assert counted == sorted(counted)
    assert FIRST in reports.lines[0]


def test_the_token_is_sent_to_the_hub_and_not_to_other_hosts(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, tmp_path)
    for request in hub.requests:
        is_hub = request.host.startswith("127.0.0.1")
        assert request.authorization == ("Bearer hf_secret" if is_hub else "")


def test_without_a_revision_main_is_taken_once_and_kept(hub: FakeHub, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path)
    hub.main = SECOND
    assert fetch(hub, tmp_path) == first
    assert find(HUB_ID, "", tmp_path) == first


def test_an_interrupted_pull_stays_with_its_commit_when_main_moves(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    hub.refused_files.clear()
    hub.main = SECOND
    assert fetch(hub, tmp_path).name == FIRST


def test_what_is_complete_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path)
    hub.requests.clear()
    reports = Reports()
    assert fetch(hub, tmp_path, reports=reports) == folder
    assert fetch(hub, tmp_path, FIRST) == folder
    assert find(HUB_ID, "", tmp_path) == folder
    assert verify(folder, ignore) == []
    assert hub.requests == []
    assert reports.lines[0].endswith("complete")


def test_a_broken_connection_is_made_anew_where_it_broke(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights.hub.CHUNK_BYTES", 10_000)
    hub.breaks_after[BIG] = [50_000, 70_000]
    assert contents(fetch(hub, tmp_path)) == LOADED
    assert hub.ranges(BIG) == ["", "bytes=50000-", "bytes=120000-"]


def test_a_pull_that_broke_off_has_no_manifest_and_the_next_fetches_the_other_files(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.refused_files.add(BIG)
    assert "(403)" in refusal(hub, tmp_path)
    folder = tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST
    assert not (folder / MANIFEST).exists()
    assert find(HUB_ID, "", tmp_path) is None
    done = set(contents(folder)) & set(LOADED)

    hub.refused_files.clear()
    hub.requests.clear()
    reports = Reports()
    assert contents(fetch(hub, tmp_path, reports=reports)) == LOADED
    assert hub.sent() == set(LOADED) - done
    rest = sum(len(LOADED[name]) for name in set(LOADED) - done)
    assert reports.bytes["Downloading"][-1] == (rest, rest)


def test_parts_that_a_killed_pull_has_left_are_removed(hub: FakeHub, tmp_path: Path) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    hub.refused_files.clear()
    folder = tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST
    part = folder / ".cache/huggingface/download/transformer/x.incomplete"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"half")
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_busy_hub_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.busy[BIG] = 1
    message = f"{hub.url} answers 503 when asked for {HUB_ID}. Try again later."
    assert refusal(hub, tmp_path) == message
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_hub_that_sends_no_ranges_sends_all_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights.hub.CHUNK_BYTES", 10_000)
    hub.breaks_after[BIG] = [50_000]
    hub.ignores_ranges = True
    reports = Reports()
    assert contents(fetch(hub, tmp_path, reports=reports)) == LOADED
    assert reports.bytes["Downloading"][-1] == (TOTAL, TOTAL)


def test_two_pulls_at_once_fetch_every_file_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.halts.add(BIG)
    first, second = Reports(), Reports()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(fetch, hub, tmp_path, reports=first)
        assert hub.halted.wait(20)
        other = pool.submit(fetch, hub, tmp_path, reports=second)
        eventually(lambda: second.lines)
        hub.halts.clear()
        hub.over.set()
        assert one.result(20) == other.result(20)
    assert "waiting" in second.lines[0]
    assert "Downloading" not in second.bytes
    assert sorted({*hub.sent()}) == sorted(LOADED)
    assert len(hub.ranges(BIG)) == 2  # it broke off once
    assert contents(tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST) == LOADED


def test_copies_of_shards_that_an_earlier_pull_has_left_are_removed(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    hub.refused_files.clear()
    folder = tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST
    (folder / "text_encoder/model-00001-of-00002.safetensors").write_bytes(b"of no index")
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_transformer_in_bfloat16_is_pulled_instead(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, variant="bf16")
    assert contents(folder) == LOADED_IN_BF16
    assert hub.sent() == set(LOADED_IN_BF16)
    assert find(HUB_ID, "", tmp_path) == folder


def test_another_variant_than_that_of_an_unfinished_pull_replaces_its_files(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    assert contents(fetch(hub, tmp_path, variant="bf16")) == LOADED_IN_BF16


def test_weights_that_are_complete_stay_in_their_variant(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, variant="bf16")
    hub.requests.clear()
    assert fetch(hub, tmp_path) == folder
    assert hub.requests == []


CLASSIFIER = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{}",
    "merges.txt": b"a b",
    "model-00001-of-00002.safetensors": b"half",
    "model-00002-of-00002.safetensors": b"half",
    "model.safetensors.index.json": index(shards("model", 2)),
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
}


def test_a_classifier_is_pulled_in_its_own_layout(hub: FakeHub, tmp_path: Path) -> None:
    others = {
        MANIFEST: b"{}",
        "modeling_own.py": b"code",
        "model.fp16.safetensors": b"rounded",
        "pytorch_model.bin": b"a pickle",
        "optimizer.pt": b"a pickle",
        "onnx/config.json": b"{}",
        "vae/model.safetensors": b"another model",
    }
    hub.files = CLASSIFIER | others
    folder = fetch(hub, tmp_path)
    assert contents(folder) == CLASSIFIER
    assert hub.sent() == set(CLASSIFIER)
    assert find(HUB_ID, FIRST, tmp_path) == folder
