"""`mochi-server up` and the other commands, as a user runs them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
from segmind import SegmindClient

from tests.support.family import children_of, children_with
from tests.support.leaks import leaks
from tests.support.services.brokers import free_port
from tests.support.stack import eventually, run_command, start_command


class Up:
    """A running `mochi-server up`, with the fake engine unless variables say otherwise."""

    def __init__(self, folder: Path, *options: str, scheme: str = "http", **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.log = folder / "up.log"
        folder.mkdir(exist_ok=True)
        self.process = start_command(
            ["up", "--port", str(self.port), "--data-dir", str(folder), *options],
            environ(MOCHI_ENGINE="fake", MOCHI_FAKE_STEP_SECONDS="0.02") | variables,
            self.log,
            self.log,
        )

    def __enter__(self) -> Up:
        """It is ready."""
        try:
            eventually(self.is_ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_error: object) -> None:
        """Stop it; fail if its log holds a secret."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        leaked = leaks(self.folder)
        assert kind is not None or not leaked, leaked

    def is_ready(self) -> bool:
        """Whether requests would be run now."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(f"{self.url}/readyz", verify=False).is_success
        except httpx2.HTTPError:
            return False

    def family(self) -> list[psutil.Process]:
        """All its processes that run, the broker included."""
        return children_of(self.process.pid, recursive=True)

    def workers(self) -> list[psutil.Process]:
        """Its workers."""
        return children_with(self.process.pid, "worker", recursive=True)

    @contextmanager
    def client(self) -> Iterator[SegmindClient]:
        """The SDK with the first key."""
        client = SegmindClient(
            api_key=(self.folder / "key").read_text().strip(), base_url=f"{self.url}/v1"
        )
        yield client
        client._client.close()


def environ(**settings: str) -> dict[str, str]:
    """The environment without settings from outside."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    return outside | settings


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return run_command(arguments, environ(COLUMNS="200", NO_COLOR="1", **settings))


def refused(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) != 0


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs."""
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)
