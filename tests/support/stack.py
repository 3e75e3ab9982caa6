"""Runs the product as real processes: Valkey, gateways and workers on free ports, in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast
from uuid import uuid4

import httpx2
from segmind import SegmindClient

from server.keys.lookup import Scope, digest
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.support.forks import can_fork, forks
from tests.support.leaks import leaks
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.outputs.base import MARKER
from worker.process.shutdown import TOGETHER_SECONDS
from worker.settings import WorkerSettings
from worker.store import keyspace
from worker.store.worker_side import WorkerStore

COMMAND = str(Path(sys.executable).with_name("mochi-server"))
"""As a user types it."""
PATIENCE_SECONDS = 120.0
LONGEST_PAUSE_SECONDS = 0.05
"""Between two looks at something that is to happen."""
STOP_SECONDS = 30.0
APART_SECONDS = TOGETHER_SECONDS + 0.3
"""Between two signals that count twice, though a busy machine delivers the first one late."""
USERS = (Scope.GENERATE, Scope.READ)
"""What a key may do that is made without saying so."""

_Result = TypeVar("_Result")


def eventually(ask: Callable[[], _Result], *, seconds: float = PATIENCE_SECONDS) -> _Result:
    """The first true answer of `ask`, or an AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} seconds: last answer {answer!r}")
        time.sleep(pause)
        pause = min(pause * 1.3, LONGEST_PAUSE_SECONDS)


class Stack:
    """The processes of one test or of one session. Everything that is started is stopped."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        """Of every process, beside our settings."""
        self.broker = EmbeddedBroker(folder)
        settings = {"fake_step_seconds": "0.05"} | settings
        self._settings = {f"MOCHI_{name.upper()}": value for name, value in settings.items()}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[httpx2.Client] = []
        self.redis = connect_briefly(self.broker.url)
        self.url = ""

    def __enter__(self) -> Stack:
        self.broker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Stop every process; fail if a log holds a secret."""
        for process in self.processes:
            process.send_signal(signal.SIGCONT)  # one that a test has paused
            process.terminate()
        try:
            for process in self.processes:
                process.wait(STOP_SECONDS)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            for client in self._clients:
                client.close()
            leaked = leaks(self.folder, self.redis)
            self.redis.close()
            self.broker.stop()
        assert kind is not None or not leaked, leaked

    @property
    def store(self) -> WorkerStore:
        """The worker's side of the store."""
        return WorkerStore(self.redis, lease_seconds=10, retention_seconds=60)

    @property
    def environ(self) -> dict[str, str]:
        """What every process is started with: nothing of ours from outside."""
        outside = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MOCHI_", "OTEL_"))
        }
        own = {"MOCHI_DATA_DIR": str(self.folder), "MOCHI_REDIS_URL": self.broker.url}
        return outside | own | self._settings | self.variables

    def start(
        self,
        package: str,
        *,
        environ: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process of `server` or `worker`; its output goes to a file in the folder.

        Args:
            package: what Python runs.
            environ: beside what every process has.
            within: a command that runs Python, as `nice` does.
        """
        log = self.folder / f"{package}-{len(self.processes)}.log"
        log.touch()
        variables = self.environ | dict(environ or {})
        if not within and can_fork(variables):
            process: subprocess.Popen[bytes] = forks().start([package], variables, log, log)
        else:
            command = [*within, sys.executable, "-P", "-m", package]
            process = _executed(command, variables, log, log)
        self.processes.append(process)
        return process

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `mochi-server` to its end, as an operator of these processes would."""
        return run_command(arguments, self.environ | variables)

    def start_gateway(self, *, within: Sequence[str] = (), **settings: str) -> str:
        """Start a gateway on a free port and return its URL when it answers."""
        process = self.start(
            "server",
            environ={"MOCHI_PORT": "0"}
            | {f"MOCHI_{name.upper()}": value for name, value in settings.items()},
            within=within,
        )
        self.url = eventually(lambda: _announced_url(self.log_of(process)))
        eventually(lambda: _answers(self.url + "/healthz"))
        return self.url

    def start_worker(
        self, *, within: Sequence[str] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker and return it when it has signed on."""
        before = self._signed_on()
        process = self.start(
            "worker",
            environ={f"MOCHI_{name.upper()}": value for name, value in settings.items()},
            within=within,
        )
        # Not by their number: one that was killed may be struck off meanwhile.
        eventually(lambda: process.poll() is not None or self._signed_on() - before)
        assert process.poll() is None, self.log_of(process)
        return process

    def live_workers(self) -> int:
        """Workers that are signed on, the lately killed ones included."""
        return len(self._signed_on())

    def _signed_on(self) -> set[str]:
        return set(cast("list[str]", self.redis.zrange("mochi:workers", 0, -1)))

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """All that a process has printed."""
        index = self.processes.index(process)
        return next(self.folder.glob(f"*-{index}.log")).read_text()

    def logs(self) -> str:
        """All that every process has printed."""
        return "".join(self.log_of(process) for process in self.processes)

    def key(self, name: str = "", scopes: Iterable[Scope] = USERS, **more: object) -> str:
        """A new API key; `more` are fields of NewKey, like `credits="7"`."""
        name = name or f"test {uuid4().hex[:12]}"
        return create_key(self.redis, NewKey.of(name=name, scopes=tuple(scopes), **more))

    def owner(self, key: str) -> str:
        """The id of a key."""
        return str(self.redis.hget(keyspace.SECRETS, digest(key))).partition(" ")[0]

    def sdk(self, key: str | None = None) -> SegmindClient:
        """The official client with nothing changed but its base URL."""
        client = SegmindClient(api_key=key or self.key(), base_url=f"{self.url}/v1", timeout=60)
        self._clients.append(client._client)  # it cannot be closed otherwise
        return client

    def http(self, key: str | None = None) -> httpx2.Client:
        """A plain HTTP client with a key."""
        headers = {"x-api-key": key or self.key()}
        client = httpx2.Client(base_url=self.url, headers=headers, timeout=60)
        self._clients.append(client)
        return client

    def record(self, request_id: str) -> dict[str, Any]:
        """The raw record."""
        return dict(self.redis.hgetall(f"mochi:request:{request_id}"))  # type: ignore[arg-type]

    def outputs(self) -> list[str]:
        """Names of all files in the output folder but its mark."""
        folder = WorkerSettings(data_dir=self.folder).outputs_dir
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return sorted(names - {MARKER})


def start_command(
    arguments: Iterable[str], environ: Mapping[str, str], output: Path, errors: Path
) -> subprocess.Popen[bytes]:
    """Start `mochi-server`; its output goes to files, or both to one."""
    start = forks().start if can_fork(environ) else _executed
    return start([COMMAND, *arguments], environ, output, errors)


def run_command(
    arguments: Iterable[str], environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `mochi-server` to its end.

    Raises:
        TimeoutExpired: it took two minutes, and was killed.
    """
    with TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = start_command(arguments, environ, output, errors)
        try:
            status = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            process.args, status, output.read_text(), errors.read_text()
        )


def _executed(
    command: Sequence[str], environ: Mapping[str, str], output: Path, errors: Path
) -> subprocess.Popen[bytes]:
    with output.open("ab") as file, errors.open("ab") as second:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=second,
            start_new_session=True,
        )


def _announced_url(log: str) -> str:
    return log.partition('"url": "')[2].partition('"')[0]


def _answers(url: str) -> bool:
    try:
        # Whatever name its certificate is made for, if it has one.
        return httpx2.get(url, verify=False).is_success
    except httpx2.HTTPError:
        return False
