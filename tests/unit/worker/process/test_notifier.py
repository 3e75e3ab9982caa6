"""What a process tells its service manager, whatever that does."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.services.systemd import ServiceManager
from worker.process.systemd import Notifier


def test_a_process_that_was_never_ready_is_not_ready_because_it_drains(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        notifier = Notifier.take(manager.environ)
        notifier.starting("Loading")
        notifier.draining()
        notifier.stopping()
        assert manager.told() == ["STATUS=Loading", "STOPPING=1", "STATUS=Stopping"]


def test_a_service_manager_that_does_not_read_blocks_nothing_and_learns_it_later(
    tmp_path: Path,
) -> None:
    with ServiceManager(tmp_path) as manager:
        notifier = Notifier.take({"NOTIFY_SOCKET": manager.environ["NOTIFY_SOCKET"]})
        most = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for number in range(most + 2):
            notifier.starting(str(number))
        notifier.serving("Serving")
        assert "READY=1" not in manager.told()
        notifier.serving("Serving")
        assert "READY=1" in manager.told()


def test_a_sign_of_life_is_sent_when_it_is_due_and_not_each_time(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        notifier = Notifier.take(manager.environ | {"WATCHDOG_USEC": "3600000000"})
        for _ in range(3):
            notifier.serving("Serving")
        assert manager.beats() == 1


@pytest.mark.parametrize("distance", [0, 1])
def test_only_the_process_that_systemd_watches_gives_signs_of_life(
    tmp_path: Path, distance: int
) -> None:
    with ServiceManager(tmp_path) as manager:
        watched = {"WATCHDOG_USEC": "2", "WATCHDOG_PID": str(os.getpid() + distance)}
        notifier = Notifier.take(manager.environ | watched)
        for _ in range(3):
            notifier.serving("Serving")
        assert manager.beats() == (1 if distance else 3)


def test_children_do_not_inherit_the_variables_of_systemd(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        environ = manager.environ | {"WATCHDOG_PID": "1", "PATH": "/bin"}
        Notifier.take(environ)
        assert environ == {"PATH": "/bin"}


def test_a_socket_in_the_abstract_namespace_is_found() -> None:
    name = f"mochi-{uuid4().hex}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind("\0" + name)
        Notifier.take({"NOTIFY_SOCKET": "@" + name}).starting("Loading")
        assert listener.recv(100) == b"STATUS=Loading"
