"""`mochi-server weights` and the pull of `mochi-server up`, run as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.weights.folder import MANIFEST
from tests.support.services.brokers import free_port
from tests.support.services.hub import FIRST, HUB_ID, SECOND, FakeHub, fake_hub
from tests.support.services.hub_files import BIG, LOADED
from tests.support.stack import COMMAND, eventually, run_command

FOLDER = f"weights/genmo--mochi-1-preview/{FIRST}"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def environ(endpoint: str, data_dir: Path, **more: str) -> dict[str, str]:
    """Nothing of ours, and nothing of the hub's, from outside."""
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("MOCHI_", "HF_"))
    }
    own = {
        "MOCHI_DATA_DIR": str(data_dir),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(data_dir / "hf"),
        "NO_PROXY": "127.0.0.1,localhost",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    return outside | own | more


def run(
    endpoint: str, data_dir: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return run_command(arguments, environ(endpoint, data_dir, **more))


def closed_endpoint() -> str:
    """An endpoint without a server."""
    return f"http://127.0.0.1:{free_port()}"


def test_weights_are_pulled_found_and_verified(hub: FakeHub, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    folder = data_dir / FOLDER

    before = run(hub.url, data_dir, "weights", "path")
    assert (before.returncode, before.stdout) == (1, "")
    assert "Type: mochi-server weights pull" in before.stderr

    pulled = run(hub.url, data_dir, "weights", "pull")
    assert (pulled.returncode, pulled.stdout) == (0, "")
    assert f"genmo/mochi-1-preview at commit {FIRST}" in pulled.stderr
    assert "Downloading: 209.6 kB of 209.6 kB" in pulled.stderr
    assert pulled.stderr.endswith(f"Complete and checked: {folder}\n")
    assert all((folder / name).read_bytes() == content for name, content in LOADED.items())
    assert [path.name for path in data_dir.iterdir()] == ["weights"]  # nothing in a hidden cache

    offline = closed_endpoint()
    assert run(offline, data_dir, "weights", "path").stdout == f"{folder}\n"
    verified = run(offline, data_dir, "weights", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "all as pulled" in verified.stderr

    (folder / BIG).write_bytes(LOADED[BIG][:-1] + b"?")
    (folder / "vae/config.json").unlink()
    damaged = run(offline, data_dir, "weights", "verify")
    assert damaged.returncode == 1
    remedy = f"\nType: mochi-server weights pull --revision {FIRST} --data-dir {data_dir}\n"
    for words in (f"\n{BIG}: changed\n", "\nvae/config.json: missing", remedy):
        assert words in damaged.stderr
    elsewhere = run(offline, tmp_path / "other", "weights", "verify", str(folder))
    assert "Copy these files again" in elsewhere.stderr


def test_a_revision_can_be_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    pulled = run(hub.url, tmp_path, "weights", "pull", "--revision", SECOND)
    assert pulled.returncode == 0, pulled.stderr
    path = run(hub.url, tmp_path, "weights", "path", MOCHI_REVISION=SECOND)
    assert path.stdout.endswith(f"/{SECOND}\n")
    other = run(hub.url, tmp_path, "weights", "path", "--revision", FIRST)
    assert other.returncode == 1
    assert f"mochi-server weights pull --revision {FIRST}" in other.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_was_ended_continues_with_the_files_that_are_missing(
    hub: FakeHub, tmp_path: Path, number: signal.Signals
) -> None:
    hub.halts.add(BIG)
    folder = tmp_path / FOLDER
    others = set(LOADED) - {BIG}
    with subprocess.Popen(
        [COMMAND, "weights", "pull"],
        env=environ(hub.url, tmp_path),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(
            lambda: hub.halted.is_set() and all((folder / name).is_file() for name in others)
        )
        process.send_signal(number)
        _, said = process.communicate(timeout=5)  # the hub is silent, which the pull bears longer
    if number == signal.SIGINT:
        assert process.returncode == 130
        command = f"mochi-server weights pull --data-dir {tmp_path}"
        assert said.endswith(f"Stopped. `{command}` continues from here.\n")
        assert "Traceback" not in said
    assert not (folder / MANIFEST).exists()
    assert list(folder.rglob("*.incomplete"))  # no time was left to remove it
    assert run(hub.url, tmp_path, "weights", "path").returncode == 1
    assert hub.bytes_sent == {name: len(LOADED[name]) for name in others} | {BIG: 100_000}

    hub.halts.clear()
    hub.bytes_sent.clear()
    again = run(hub.url, tmp_path, "weights", "pull")
    assert again.returncode == 0, again.stderr
    assert hub.bytes_sent == {BIG: 200_000}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*LOADED, MANIFEST}
    assert run(hub.url, tmp_path, "weights", "verify").returncode == 0


def test_a_pull_asks_for_lists_and_files_alone(hub: FakeHub, tmp_path: Path) -> None:
    pulled = run(hub.url, tmp_path, "weights", "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert hub.sent() == set(LOADED)
    kinds = ("revision/main", f"revision/{FIRST}", f"tree/{FIRST}")
    wanted = {f"/api/models/{HUB_ID}/{kind}" for kind in kinds}
    paths = {request.path for request in hub.requests}
    assert wanted == {path for path in paths if path.startswith("/api/")}  # no telemetry, no Xet
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]  # and HF_HOME is not made


def test_errors_are_one_message_without_a_trace(tmp_path: Path) -> None:
    endpoint = closed_endpoint()
    for arguments in (["pull"], ["pull", "--weights", "dummy"], ["verify", str(tmp_path)]):
        refused = run(endpoint, tmp_path, "weights", *arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Traceback" not in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    refused = run("http://127.0.0.1:none", tmp_path, "weights", "pull")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "HF_ENDPOINT=http://127.0.0.1:none is not an address" in refused.stderr
    wrong = run(endpoint, tmp_path, "weights", "pull", "--revision", "main")
    assert wrong.returncode == os.EX_CONFIG
    assert "MOCHI_REVISION: got 'main'" in wrong.stderr


def test_up_pulls_before_it_starts_anything(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    (tools / "nvidia-smi").chmod(0o755)
    endpoint = closed_endpoint()
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    refused = run(endpoint, tmp_path / "data", "up", "--port", "0", PATH=path)
    assert refused.returncode == os.EX_CONFIG
    assert f"{endpoint} cannot be reached" in refused.stderr
    assert [folder.name for folder in (tmp_path / "data").iterdir()] == ["weights"]
