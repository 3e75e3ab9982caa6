"""A pull that fails: the message names the cause and the remedy."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.weights.folder import find
from models.weights.pull import pull
from tests.support.models.pulls import SMALL, contents, fetch, ignore, refusal
from tests.support.services.brokers import free_port
from tests.support.services.hub import FIRST, HUB_ID, FakeHub, fake_hub_here
from tests.support.services.hub_files import BIG, INDEXES, LOADED, OTHERS, index


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_a_file_that_came_damaged_is_named_and_removed(
    hub: FakeHub, tmp_path: Path, name: str
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


def test_a_file_of_another_size_than_listed_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.claimed_sizes[BIG] = 200_001
    message = refusal(hub, tmp_path)
    assert f"{hub.url} sent a file of {HUB_ID} with another size than it lists" in message
    assert find(HUB_ID, "", tmp_path) is None


def test_too_little_room_is_reported_with_both_numbers_before_the_download(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.claimed_sizes[BIG] = 10**18
    message = refusal(hub, tmp_path)
    assert message.startswith("The download needs 1.0 EB, and ")
    assert " free. Make room" in message
    assert "MOCHI_DATA_DIR=/path" in message
    assert hub.sent() == INDEXES


def test_a_full_disk_is_named(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        message = refusal(hub, tmp_path)
    assert "is full" in message
    assert "It keeps the files that are complete" in message
    assert contents(fetch(hub, tmp_path)) == LOADED


def test_a_folder_that_cannot_be_used_is_named(hub: FakeHub, tmp_path: Path) -> None:
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
    hub: FakeHub, tmp_path: Path, status: int, headers: dict[str, str], words: list[str]
) -> None:
    hub.refusal = status, headers
    message = refusal(hub, tmp_path)
    for word in (hub.url, *words):
        assert word in message


def test_an_unknown_commit_is_named(hub: FakeHub, tmp_path: Path) -> None:
    message = refusal(hub, tmp_path, "f" * 40)
    assert f"genmo/mochi-1-preview has no commit {'f' * 40}" in message
    assert f"MOCHI_REVISION to one of {hub.url}/genmo/mochi-1-preview/commits/main" in message
    fetch(hub, tmp_path)  # nothing of it is left


def test_a_hub_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub_here(monkeypatch, port=free_port()) as silent:
        message = refusal(silent, tmp_path)
    assert f"{silent.url} cannot be reached ([Errno {errno.ECONNREFUSED}] " in message
    for remedy in ("HTTPS_PROXY", "HF_ENDPOINT", "MOCHI_WEIGHTS=/path/to/folder"):
        assert remedy in message


def test_a_hub_that_goes_away_before_a_repair_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub_here(monkeypatch) as hub:
        folder = fetch(hub, tmp_path)
    (folder / SMALL).unlink()
    with fake_hub_here(monkeypatch, port=free_port()) as silent:
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
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    message = refusal(hub, tmp_path)
    assert "HF_TOKEN contains a character" in message
    assert "hf_" not in message


def test_offline_mode_is_named(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(hub, tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["dummy", "/no/such/folder", "a/b--c"])
def test_what_is_no_hub_id_is_not_asked_for(hub: FakeHub, tmp_path: Path, name: str) -> None:
    message = refusal(hub, tmp_path, name=name)
    assert f"MOCHI_WEIGHTS={name} is not a hub id" in message
    assert hub.requests == []


def test_a_model_in_another_layout_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = OTHERS | {name: LOADED[name] for name in LOADED if not name.startswith("vae/")}
    assert f"{HUB_ID} at commit {FIRST} lacks vae/*.safetensors" in refusal(hub, tmp_path)


def test_a_variant_that_the_hub_has_not_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = LOADED
    message = refusal(hub, tmp_path, variant="bf16")
    assert "lacks transformer/*.safetensors" in message
    assert message.endswith("with --weights, or leave --variant bf16 out.")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (index(["../../escaped.safetensors"]), "The hub has no text_encoder/../../escaped"),
        (index(["model-00001-of-00009.safetensors"]), "no text_encoder/model-00001-of-00009"),
        (b"{}", "names no shards"),
        (b"{", "names no shards"),
    ],
)
def test_an_index_of_files_that_are_not_there_is_refused(
    hub: FakeHub, tmp_path: Path, content: bytes, words: str
) -> None:
    hub.files["text_encoder/model.safetensors.index.json"] = content
    assert words in refusal(hub, tmp_path)
    assert hub.sent() == INDEXES


def test_a_classifier_that_is_only_there_as_a_pickle_is_refused(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    message = refusal(hub, tmp_path)
    assert "lacks model*.safetensors: it is not a classifier in transformers' layout" in message


def test_a_commit_that_is_none_is_not_taken_for_a_folder(hub: FakeHub, tmp_path: Path) -> None:
    hub.main = "../../elsewhere"
    hub.commits.append(hub.main)
    assert "answers with commit '../../elsewhere'" in refusal(hub, tmp_path)


@pytest.mark.parametrize("module", ["huggingface_hub", "google.protobuf", "sentencepiece"])
def test_without_all_libraries_of_pull_and_loading_nothing_is_pulled(
    tmp_path: Path, module: str
) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
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
    assert printed.startswith(f"The worker's libraries are not installed (missing: {module}).")
    assert printed.endswith("pip install -c constraints.txt '.[worker]'\n")
    assert not list(tmp_path.iterdir())
