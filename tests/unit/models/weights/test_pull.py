from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.settings import default_data_dir
from models.weights.folder import (
    MANIFEST,
    absent,
    find,
    is_hub_id,
    locate,
    pull_command,
    read_manifest,
)
from models.weights.pull import pull, verify
from tests.support.services.brokers import free_port
from tests.support.services.hub import (
    BIG,
    FIRST,
    HUB_ID,
    LOADED,
    OTHERS,
    SECOND,
    StandIn,
    stand_in_here,
)
from tests.support.stack import eventually

SMALL = "vae/config.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in_here(monkeypatch) as hub:
        yield hub


class Reports:
    """The lines and the progress of a pull."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bytes: dict[str, list[tuple[int, int]]] = {}

    def progress(self, what: str, total: int) -> Callable[[int], None]:
        counted = self.bytes.setdefault(what, [(0, total)])
        lock = threading.Lock()

        def advance(count: int) -> None:
            with lock:
                counted.append((counted[-1][0] + count, total))

        return advance


def fetch(
    hub: StandIn,
    data_dir: Path,
    revision: str = "",
    reports: Reports | None = None,
    name: str = HUB_ID,
) -> Path:
    reports = reports or Reports()
    return pull(name, revision, data_dir, progress=reports.progress, say=reports.lines.append)


def refusal(hub: StandIn, data_dir: Path, revision: str = "", name: str = HUB_ID) -> str:
    with pytest.raises(WeightsError) as error:
        fetch(hub, data_dir, revision, name=name)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def ignore(what: str, total: int) -> Callable[[int], None]:
    """No progress."""
    return lambda _count: None


def test_a_pull_brings_what_mochi_is_loaded_from_and_nothing_else(
    hub: StandIn, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path / "data")
    assert folder == tmp_path / "data" / "weights" / "genmo--mochi-1-preview" / FIRST
    assert contents(folder) == LOADED
    assert not list(tmp_path.rglob("escaped.json"))
    assert hub.sent() == set(LOADED)


def test_the_manifest_names_the_commit_and_each_file_with_size_and_checksum(
    hub: StandIn, tmp_path: Path
) -> None:
    manifest = read_manifest(fetch(hub, tmp_path))
    assert (manifest.hub_id, manifest.commit) == (HUB_ID, FIRST)
    assert {name: file.size for name, file in manifest.files.items()} == {
        name: len(content) for name, content in LOADED.items()
    }
    assert manifest.files[BIG].checksum.startswith("sha256:")
    assert manifest.files[SMALL].checksum == "git:9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_progress_is_counted_in_bytes_up_to_all_of_them(hub: StandIn, tmp_path: Path) -> None:
    reports = Reports()
    fetch(hub, tmp_path, reports=reports)
    total = sum(map(len, LOADED.values()))
    assert reports.bytes["Downloading"][0] == (0, total)
    assert reports.bytes.pop("Checking what is here") == [(0, 0)]
    for counted in reports.bytes.values():
        assert counted[-1] == (total, total)
        assert counted == sorted(counted)
    assert FIRST in reports.lines[0]


def test_the_token_is_sent_to_the_hub_and_not_to_other_hosts(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, tmp_path)
    for request in hub.requests:
        is_hub = request.host.startswith("127.0.0.1")
        assert request.authorization == ("Bearer hf_secret" if is_hub else "")


def test_without_a_revision_main_is_taken_once_and_kept(hub: StandIn, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path)
    hub.main = SECOND
    assert fetch(hub, tmp_path) == first
    assert find(HUB_ID, "", tmp_path) == first


def test_an_interrupted_pull_stays_with_its_commit_when_main_moves(
    hub: StandIn, tmp_path: Path
) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    hub.refused_files.clear()
    hub.main = SECOND
    assert fetch(hub, tmp_path).name == FIRST


def test_a_revision_is_what_is_pulled_and_found(hub: StandIn, tmp_path: Path) -> None:
    second = fetch(hub, tmp_path, SECOND)
    assert second.name == SECOND
    assert find(HUB_ID, FIRST, tmp_path) is None
    first = fetch(hub, tmp_path, FIRST)
    assert find(HUB_ID, FIRST, tmp_path) == first
    assert find(HUB_ID, SECOND, tmp_path) == second


def test_without_a_revision_the_commit_completed_last_is_found(
    hub: StandIn, tmp_path: Path
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


def test_what_is_complete_needs_no_hub(hub: StandIn, tmp_path: Path) -> None:
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
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights.hub.CHUNK_BYTES", 10_000)
    hub.breaks_after[BIG] = [50_000, 70_000]
    assert contents(fetch(hub, tmp_path)) == LOADED
    assert hub.ranges(BIG) == ["", "bytes=50000-", "bytes=120000-"]


def test_a_pull_that_broke_off_has_no_manifest_and_the_next_fetches_the_other_files(
    hub: StandIn, tmp_path: Path
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


def test_parts_that_a_killed_pull_has_left_are_removed(hub: StandIn, tmp_path: Path) -> None:
    hub.refused_files.add(BIG)
    refusal(hub, tmp_path)
    hub.refused_files.clear()
    folder = tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST
    part = folder / ".cache/huggingface/download/transformer/x.incomplete"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"half")
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_busy_hub_is_named(hub: StandIn, tmp_path: Path) -> None:
    hub.busy[BIG] = 1
    message = f"{hub.url} answers 503 when asked for {HUB_ID}. Try again later."
    assert refusal(hub, tmp_path) == message
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_hub_that_sends_no_ranges_sends_all_again(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights.hub.CHUNK_BYTES", 10_000)
    hub.breaks_after[BIG] = [50_000]
    hub.ignores_ranges = True
    reports = Reports()
    assert contents(fetch(hub, tmp_path, reports=reports)) == LOADED
    total = sum(map(len, LOADED.values()))
    assert reports.bytes["Downloading"][-1] == (total, total)


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_a_file_that_came_damaged_is_named_and_removed(
    hub: StandIn, tmp_path: Path, name: str
) -> None:
    hub.spoiled.add(name)
    message = refusal(hub, tmp_path)
    assert f"{name} came damaged from {hub.url}" in message
    assert "Type again: mochi-server weights pull" in message
    folder = tmp_path / "weights" / "genmo--mochi-1-preview" / FIRST
    assert not (folder / name).exists()
    assert not (folder / ".cache").exists()
    assert find(HUB_ID, "", tmp_path) is None

    hub.spoiled.clear()
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_file_of_another_size_than_listed_is_refused(hub: StandIn, tmp_path: Path) -> None:
    hub.claimed_sizes[BIG] = 200_001
    message = refusal(hub, tmp_path)
    assert f"{hub.url} sent a file of {HUB_ID} with another size than it lists" in message
    assert find(HUB_ID, "", tmp_path) is None


def test_two_pulls_at_once_fetch_every_file_once(hub: StandIn, tmp_path: Path) -> None:
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


def test_verify_names_each_changed_missing_and_short_file_and_pull_repairs_them(
    hub: StandIn, tmp_path: Path
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
    hub: StandIn, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path)
    (folder / MANIFEST).write_text("{")
    assert find(HUB_ID, "", tmp_path) is None
    hub.requests.clear()
    assert fetch(hub, tmp_path) == folder
    assert hub.sent() == set()
    assert find(HUB_ID, "", tmp_path) == folder


def test_too_little_room_is_reported_with_both_numbers_before_the_download(
    hub: StandIn, tmp_path: Path
) -> None:
    hub.claimed_sizes[BIG] = 10**18
    message = refusal(hub, tmp_path)
    assert message.startswith("The download needs 1.0 EB, and ")
    assert " free. Make room" in message
    assert "MOCHI_DATA_DIR=/path" in message
    assert hub.sent() == set()


def test_a_full_disk_is_named(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        message = refusal(hub, tmp_path)
    assert "is full" in message
    assert "It keeps the files that are complete" in message
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_folder_that_cannot_be_used_is_named(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(hub, tmp_path / "file")
    assert f"{tmp_path}/file/weights cannot be used: Not a directory" in message
    assert "MOCHI_DATA_DIR=/path" in message


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, ["has no model genmo/mochi-1-preview", "MOCHI_WEIGHTS", "HF_TOKEN"]),
        (404, {"X-Error-Code": "RepoNotFound"}, ["has no model", "MOCHI_WEIGHTS", "HF_TOKEN"]),
        (403, {}, ["refuses access to genmo/mochi-1-preview (403)", "HF_TOKEN"]),
        (403, {"X-Error-Code": "GatedRepo"}, ["is gated: accept its terms at", "HF_TOKEN"]),
        (503, {}, ["answers 503", "Try again later"]),
        (200, {}, ["does not answer as a hub does", "HF_ENDPOINT"]),
    ],
)
def test_a_refusal_of_the_hub_comes_with_a_remedy(
    hub: StandIn, tmp_path: Path, status: int, headers: dict[str, str], words: list[str]
) -> None:
    hub.refusal = status, headers
    message = refusal(hub, tmp_path)
    for word in (hub.url, *words):
        assert word in message


def test_an_unknown_commit_is_named(hub: StandIn, tmp_path: Path) -> None:
    message = refusal(hub, tmp_path, "f" * 40)
    assert f"genmo/mochi-1-preview has no commit {'f' * 40}" in message
    assert f"MOCHI_REVISION to one of {hub.url}/genmo/mochi-1-preview/commits/main" in message
    fetch(hub, tmp_path)  # nothing of it is left


def test_a_hub_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_here(monkeypatch, port=free_port()) as silent:
        message = refusal(silent, tmp_path)
    assert f"{silent.url} cannot be reached ([Errno {errno.ECONNREFUSED}] " in message
    for remedy in ("HTTPS_PROXY", "HF_ENDPOINT", "MOCHI_WEIGHTS=/path/to/folder"):
        assert remedy in message


def test_a_hub_that_goes_away_before_a_repair_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_here(monkeypatch) as hub:
        folder = fetch(hub, tmp_path)
    (folder / SMALL).unlink()
    with stand_in_here(monkeypatch, port=free_port()) as silent:
        message = refusal(silent, tmp_path)
    assert f"{silent.url} cannot be reached (" in message


@pytest.mark.parametrize("endpoint", ["hub", "", "http://127.0.0.1:none"])
def test_an_endpoint_that_is_no_address_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(WeightsError, match=f"HF_ENDPOINT={endpoint} is not an address"):
        pull(HUB_ID, "", tmp_path, progress=ignore, say=print)


def test_a_token_that_cannot_be_one_is_named_and_not_shown(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    message = refusal(hub, tmp_path)
    assert "HF_TOKEN contains a character" in message
    assert "hf_" not in message


def test_offline_mode_is_named(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(hub, tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["dummy", "/no/such/folder", "a/b--c"])
def test_what_is_no_hub_id_is_not_asked_for(hub: StandIn, tmp_path: Path, name: str) -> None:
    message = refusal(hub, tmp_path, name=name)
    assert f"MOCHI_WEIGHTS={name} is not a hub id" in message
    assert hub.requests == []


def test_a_model_in_another_layout_is_refused(hub: StandIn, tmp_path: Path) -> None:
    hub.files = OTHERS | {name: LOADED[name] for name in LOADED if not name.startswith("vae/")}
    assert f"{HUB_ID} at commit {FIRST} lacks vae/*.safetensors" in refusal(hub, tmp_path)


CLASSIFIER = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{}",
    "merges.txt": b"a b",
    "model-00001-of-00002.safetensors": b"half",
    "model-00002-of-00002.safetensors": b"half",
    "model.safetensors.index.json": b"{}",
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
}


def test_a_classifier_is_pulled_in_its_own_layout(hub: StandIn, tmp_path: Path) -> None:
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


def test_a_classifier_that_is_only_there_as_a_pickle_is_refused(
    hub: StandIn, tmp_path: Path
) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    message = refusal(hub, tmp_path)
    assert "lacks model*.safetensors: it is not a classifier in transformers' layout" in message


def test_a_commit_that_is_none_is_not_taken_for_a_folder(hub: StandIn, tmp_path: Path) -> None:
    hub.main = "../../elsewhere"
    hub.commits.append(hub.main)
    assert "answers with commit '../../elsewhere'" in refusal(hub, tmp_path)


def test_a_message_about_absent_weights_names_the_command(tmp_path: Path) -> None:
    assert f"are not in {tmp_path}/weights" in absent(HUB_ID, "", tmp_path)
    assert absent(HUB_ID, "", tmp_path).endswith(f"pull --data-dir {tmp_path}")
    assert "There is no folder MOCHI_WEIGHTS=/nowhere" in absent("/nowhere", "", tmp_path)
    usual = default_data_dir()
    assert absent(HUB_ID, "", usual).endswith("Type: mochi-server weights pull")
    assert pull_command("me/mine", FIRST, usual) == (
        f"mochi-server weights pull --weights me/mine --revision {FIRST}"
    )
    assert pull_command(HUB_ID, "", Path("/my disk")).endswith(" pull --data-dir '/my disk'")


def test_without_the_workers_libraries_a_pull_says_what_to_install(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["huggingface_hub"] = None
from pathlib import Path
from models.errors import EngineUnavailableError
from models.weights.pull import pull
try:
    pull({HUB_ID!r}, "", Path({str(tmp_path)!r}), progress=print, say=print)
except EngineUnavailableError as error:
    print(error)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    assert "pip install 'mochi-server[worker]'" in printed
