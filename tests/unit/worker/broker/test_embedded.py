"""The embedded Valkey, as a real process with a real owner process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.services.disks import on_a_tiny_disk
from tests.support.stack import eventually
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker, broker_of
from worker.broker.program import find_program
from worker.errors import BrokerStartError

OWNER = """
import sys, time
from pathlib import Path
from worker.broker.embedded import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]), sys.argv[2])
broker.start()
print("started", flush=True)
time.sleep(600)
"""
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from worker.broker.embedded import EmbeddedBroker
from worker.errors import BrokerStartError
broker = EmbeddedBroker(Path(sys.argv[1]), sys.argv[2])
filler = Path(sys.argv[1], "filler")
filler.write_bytes(bytes(1 << 20))
for _ in range(2):
    try:
        broker.start()
    except BrokerStartError as error:
        print(error)
filler.unlink()
broker.start()
broker.stop()
print("started")
"""
FILL = """
for i = 1, 20000 do redis.call('SET', ARGV[1] .. ':' .. i, string.rep('x', 200)) end
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """One that is stopped at the end, whichever process started it."""
    broker = EmbeddedBroker(tmp_path)
    yield broker
    if broker._lock is None:
        broker._lock = broker._lock_folder()
    broker.stop()


def server_of(broker: EmbeddedBroker) -> psutil.Process:
    with connect_briefly(broker.url) as client:
        return psutil.Process(client.info("server")["process_id"])


def put(broker: EmbeddedBroker, value: str) -> None:
    with connect_briefly(broker.url) as client:
        client.set("kept", value)


def get(broker: EmbeddedBroker) -> object:
    with connect_briefly(broker.url) as client:
        return client.get("kept")


@pytest.fixture
def owner(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    command = [sys.executable, "-c", OWNER, str(tmp_path), find_program("")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.kill()


def test_it_listens_on_a_private_socket_and_on_no_port(broker: EmbeddedBroker) -> None:
    broker.start()
    server = server_of(broker)
    assert server.net_connections("inet") == []
    path = Path(broker.url.removeprefix("unix://"))
    assert path.stat().st_mode & 0o777 == 0o700
    with connect_briefly(broker.url) as client:
        assert client.config_get("port") == {"port": "0"}


def test_its_files_are_for_its_owner_only(broker: EmbeddedBroker, tmp_path: Path) -> None:
    broker.start()
    put(broker, "secret")
    for path in (tmp_path / "broker", *(tmp_path / "broker").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_keeps_all_data_and_evicts_none(broker: EmbeddedBroker) -> None:
    broker.start()
    with connect_briefly(broker.url) as client:
        for name, value in {
            "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction",
        }.items():  # fmt: skip
            assert client.config_get(name) == {name: value}


def test_its_files_hold_commands_which_servers_of_other_versions_read(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """An RDB of Valkey 9 stops the start of Valkey 8 and of Redis."""
    broker.start()
    put(broker, "kept")
    with connect_briefly(broker.url) as client:
        client.bgrewriteaof()
        eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
    (base,) = (tmp_path / "broker").rglob("*.base.*")
    assert b"\r\nSET\r\n$4\r\nkept\r\n" in base.read_bytes()


def test_a_killed_owner_leaves_a_server_that_the_next_one_attaches_to(
    broker: EmbeddedBroker, owner: subprocess.Popen[str]
) -> None:
    server = server_of(broker)
    put(broker, "before the kill")
    owner.kill()
    owner.wait()
    broker.start()
    assert server_of(broker) == server
    assert get(broker) == "before the kill"
    broker.stop()
    assert not broker.is_alive()
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_second_owner_is_told_who_the_first_one_is(
    broker: EmbeddedBroker, owner: subprocess.Popen[str]
) -> None:
    with pytest.raises(
        BrokerStartError, match=rf"in use by another mochi-server \(pid {owner.pid}"
    ):
        broker.start()
    broker.stop()
    assert broker.is_alive(), "another process's broker is not stopped"


def test_a_killed_server_is_started_again_with_all_that_it_acknowledged(
    broker: EmbeddedBroker,
) -> None:
    broker.start()
    first = server_of(broker)
    for number in range(100):
        put(broker, str(number))
    first.send_signal(signal.SIGKILL)
    eventually(lambda: not broker.is_alive())
    broker.start()
    assert server_of(broker) != first
    assert get(broker) == "99"


def test_it_is_ready_when_its_data_is_loaded(broker: EmbeddedBroker) -> None:
    broker.start()
    with connect_briefly(broker.url) as client:
        client.config_set("appendfsync", "no")
        for part in range(10):
            client.eval(FILL, 0, part)
        server_of(broker).send_signal(signal.SIGKILL)
        eventually(lambda: not broker.is_alive())
        broker.start()
        assert client.dbsize() == 200_000


def test_a_server_that_does_not_answer_gets_no_second_one_beside_it(
    broker: EmbeddedBroker,
) -> None:
    broker.start()
    put(broker, "kept")
    server = server_of(broker)
    server.suspend()
    assert not broker.is_alive()
    broker.start()
    server.resume()
    eventually(broker.is_alive)
    assert server_of(broker) == server
    assert get(broker) == "kept"


def test_a_server_that_does_not_answer_is_stopped_all_the_same(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.broker.embedded.STOP_SECONDS", 0.3)
    broker.start()
    server = server_of(broker)
    server.suspend()
    broker.stop()
    assert not server.is_running()


def test_a_server_whose_folder_was_deleted_is_stopped_too(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    server = server_of(broker)
    shutil.rmtree(tmp_path / "broker")
    stopping = threading.Thread(target=broker.stop, daemon=True)
    stopping.start()
    stopping.join(timeout=20)
    is_over = not stopping.is_alive()
    with suppress(psutil.NoSuchProcess):
        server.kill()
    assert is_over


def test_a_server_of_a_dead_owner_that_does_not_answer_is_stopped_too(
    broker: EmbeddedBroker, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.broker.embedded.STOP_SECONDS", 0.3)
    owner.kill()
    owner.wait()
    broker.start()
    server = server_of(broker)
    server.suspend()
    broker.stop()
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_number_in_an_old_file_harms_no_other_process(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        broker.start()
        (tmp_path / "broker" / "valkey.pid").write_text(str(stranger.pid))
        broker.stop()
        assert not broker.is_alive()
        assert stranger.poll() is None
        stranger.kill()


def test_a_server_that_cannot_be_ended_is_given_up(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.start()
    server = server_of(broker)
    with monkeypatch.context() as patch:
        patch.setattr("worker.broker.embedded.STOP_SECONDS", 0.1)
        patch.setattr("worker.broker.embedded.os.kill", lambda *_: None)
        broker.stop()
    assert server.is_running()


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "folder"
    broker, client = EmbeddedBroker(folder), EmbeddedBroker(folder)
    broker.start()
    try:
        assert client.url == broker.url
        assert len(broker.url) < 110
        put(client, "found")
        assert get(broker) == "found"
        socket_folder = Path(broker.url.removeprefix("unix://")).parent
        assert socket_folder.stat().st_mode & 0o777 == 0o700
    finally:
        broker.stop()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerStartError, match="file/broker cannot be used: Not a directory"):
        EmbeddedBroker(tmp_path / "file").start()


def test_a_full_disk_is_named_and_once_it_has_room_the_next_start_succeeds(tmp_path: Path) -> None:
    python = (sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path), find_program(""))
    command = (*on_a_tiny_disk(tmp_path, "1m"), *python)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    *errors, last = ended.stdout.splitlines()
    assert last == "started"
    assert len(errors) == 2
    for error in errors:
        assert "cannot be used: No space left on device. The disk of " in error
        assert " has 0 MiB free" in error


def test_a_server_that_cannot_start_says_why_and_leaves_the_folder_free(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    broker.start()
    put(broker, "kept")
    broker.stop()
    (manifest,) = (tmp_path / "broker").rglob("*.manifest")
    good = manifest.read_text()
    manifest.write_text("no manifest\n")
    with pytest.raises(BrokerStartError, match=r"did not start: .*valkey\.log.*MOCHI_VALKEY"):
        broker.start()
    manifest.write_text(good)
    broker.start()
    assert get(broker) == "kept"


def test_starting_again_and_stopping_again_do_nothing(broker: EmbeddedBroker) -> None:
    broker.start()
    server = server_of(broker)
    broker.start()
    assert server_of(broker) == server
    broker.stop()
    broker.stop()
    assert not server.is_running()


def test_ctrl_c_at_the_terminal_does_not_reach_it(broker: EmbeddedBroker) -> None:
    broker.start()
    assert os.getpgid(server_of(broker).pid) != os.getpgrp()


def test_a_command_starts_the_broker_for_itself_only_when_none_runs(tmp_path: Path) -> None:
    with broker_of("", tmp_path) as url:
        assert EmbeddedBroker(tmp_path).is_alive()
        with broker_of("", tmp_path) as same:
            assert same == url
        assert EmbeddedBroker(tmp_path).is_alive()
    assert not EmbeddedBroker(tmp_path).is_alive()


def test_a_command_leaves_the_broker_of_a_running_server_alone(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    with broker_of("", tmp_path) as url, connect_briefly(url) as client:
        assert client.ping()
    assert EmbeddedBroker(tmp_path).is_alive()
    assert owner.poll() is None


def test_an_external_broker_is_used_as_it_is(tmp_path: Path) -> None:
    with broker_of("redis://broker:6379/0", tmp_path) as url:
        assert url == "redis://broker:6379/0"
    assert list(tmp_path.iterdir()) == []
