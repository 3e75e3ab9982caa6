"""The gateways and workers of an experiment: real processes, each with a log file of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from models.request.catalogue import FAST_MOCHI
from models.request.params import MODEL
from tests.bench.processes import HOST, NO_LIMIT, spawn, wait_until_ready
from tests.chaos.books import CACHED_SHARE, PRICES
from tests.chaos.faults import Kind
from tests.chaos.history import Event, What
from tests.support.family import children_with
from tests.support.services.brokers import free_port
from tests.support.services.receiver import ALLOWED
from worker.process.parent_watch import WITH_PARENT

STOP_SECONDS = 30.0
TOLD = (0, -signal.SIGTERM)
"""How a worker that was told to stop may end: the signal may come before it can heed it."""

SERVED = (f"{MODEL},{FAST_MOCHI.slug}", MODEL, FAST_MOCHI.slug)
"""What workers run, by turns; groups run one model each."""
LORAS = ("ink,noir", "ink")
"""What workers offer, by turns."""
CACHE = {"MOCHI_CACHE": "true", "MOCHI_CACHE_PRICE": f"{CACHED_SHARE}"}
"""Of gateways, where all processes are of one release."""
GROUP = {"MOCHI_ENGINE": "mochi", "MOCHI_MOCK": "true", "MOCHI_GPUS_PER_VIDEO": "2"}
"""Variables of a worker with a follower."""


def models_of(place: int, groups: int) -> str:
    """What the worker in a place runs, as in MOCHI_MODELS. The first `groups` are groups."""
    if place < groups:
        return SERVED[1:][place % 2]
    return SERVED[(place - groups) % len(SERVED)]


def loras_of(place: int) -> str:
    """The LoRAs of the worker in a place, as in MOCHI_LORAS: not all have all."""
    return LORAS[place % len(LORAS)]


@dataclass(frozen=True)
class Member:
    """A process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def name(self) -> str:
        """Unique, for the history."""
        return self.log.stem


class Fleet:
    """So many gateways and workers, each in its place, whatever is done to them.

    A worker that is paused or told to stop leaves its place to a new one at once, as where machines
    are many, and lives on beside it.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        lease_seconds: float,
        note: Callable[[Event], None],
        groups: int = 0,
        older: Path | None = None,
    ) -> None:
        """`older` is the folder of the release that all processes are of at first."""
        self.died: list[str] = []
        """Processes that ended without being told to."""
        self._environ = {
            "MOCHI_ENGINE": "fake",
            "MOCHI_DATA_DIR": str(folder),
            "MOCHI_REDIS_URL": url,
            "MOCHI_LEASE_SECONDS": str(lease_seconds),
            "MOCHI_MOST_WAITING": str(NO_LIMIT),
            "MOCHI_WEBHOOK_ALLOW": ALLOWED,
            **PRICES,
        }
        self._older = older
        self._rolled: set[tuple[Kind, int]] = set()
        """Places whose processes are of this release, not of `older`."""
        self._groups = groups
        self._kills = 0
        self._note = note
        self._folder = folder
        self._ports: list[int] = []
        self._gateways: list[Member] = []
        self._workers: list[Member] = []
        self._leaving: list[Member] = []
        self._started: list[Member] = []

    def __enter__(self) -> Self:
        # All children hold one pipe as standard input, which ends when we do, whatever ends us.
        self._parent_watch = os.pipe()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._started:
            member.process.kill()
            member.process.wait()
        for descriptor in self._parent_watch:
            os.close(descriptor)

    def start(self, *, gateways: int, workers: int) -> list[str]:
        """Start all and wait until they serve. Returns the gateways' URLs."""
        self._ports = [free_port() for _ in range(gateways)]
        self._gateways = [self._start_gateway(place) for place in range(gateways)]
        self._workers = [self._start_worker(place) for place in range(workers)]
        urls = [self.url(place) for place in range(gateways)]
        for url in urls:
            wait_until_ready(f"{url}/readyz")
        return urls

    def is_loading_group(self, place: int) -> bool:
        """Whether it is a group that loads the model, which takes longer than to the next fault."""
        log = self._workers[place].log
        return place < self._groups and "worker.ready" not in log.read_text(errors="replace")

    def kill_worker(self, place: int) -> None:
        """SIGKILL; a new one is started at once. Of groups, every other time to the follower."""
        self._kills += place < self._groups
        if place < self._groups and self._kills % 2:
            worker = self._workers[place].process.pid
            for follower in children_with(worker, "worker.runtime.follower"):
                follower.kill()  # its worker ends by itself
            return
        victim = self._replace(place)
        self._tell(What.KILLED, victim)
        victim.process.kill()
        victim.process.wait()

    def start_successor(self, kind: Kind, place: int) -> tuple[Member, Member]:
        """Start a process of the other release beside one. Returns that one, to be retired, and it.

        Args:
            kind: `ROLL_WORKER` or `ROLL_GATEWAY`. A gateway listens on a port of its own.
            place: of the process.
        """
        self._rolled ^= {(kind, place)}
        if kind is Kind.ROLL_WORKER:
            return self._replace(place), self._workers[place]
        leaver = self._gateways[place]
        self._ports[place] = free_port()
        self._gateways[place] = self._start_gateway(place)
        return leaver, self._gateways[place]

    def url(self, place: int) -> str:
        """Of the gateway that serves there, or is to."""
        return f"http://{HOST}:{self._ports[place]}"

    def retire(self, leaver: Member) -> None:
        """SIGTERM to a process that has a successor."""
        self._leaving.append(leaver)
        leaver.process.terminate()

    def stop_worker(self, place: int) -> Member:
        """SIGTERM: it finishes what it runs. A new one is started at once."""
        leaver = self._replace(place)
        self.retire(leaver)
        return leaver

    def hurry(self, leaver: Member) -> None:
        """SIGTERM again: it requeues what it runs."""
        leaver.process.terminate()

    def pause_worker(self, place: int) -> Member:
        """SIGSTOP; a new one is started at once."""
        sleeper = self._replace(place)
        self._leaving.append(sleeper)
        self._tell(What.PAUSED, sleeper)
        sleeper.process.send_signal(signal.SIGSTOP)
        return sleeper

    def resume(self, sleeper: Member) -> None:
        """SIGCONT."""
        sleeper.process.send_signal(signal.SIGCONT)
        self._tell(What.RESUMED, sleeper)

    def kill_gateway(self, place: int) -> None:
        """SIGKILL; one is started on the same port at once."""
        victim = self._gateways[place].process
        victim.kill()
        victim.wait()
        self._gateways[place] = self._start_gateway(place)

    def watch(self) -> None:
        """Note the processes that have ended, and restart those that should run. Call it often."""
        for member in [member for member in self._leaving if member.process.poll() is not None]:
            self._leaving.remove(member)
            self._note_exit(member, expected=TOLD)
        for place, member in enumerate(self._workers):
            if member.process.poll() is not None:
                expected = (os.EX_TEMPFAIL,) if place < self._groups else ()
                self._note_exit(self._replace(place), expected)
        for place, member in enumerate(self._gateways):
            if member.process.poll() is not None:
                self._note_exit(member)
                self._gateways[place] = self._start_gateway(place)

    def stop(self) -> list[str]:
        """Tell all to stop, and wait. Returns the names of those that do not."""
        for member in self._started:
            member.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return [member.name for member in self._alive()]

    def worker_logs(self) -> list[Path]:
        """Of all workers that ever were."""
        return [member.log for member in self._started if member.name.startswith("worker")]

    def logs(self) -> list[Path]:
        """Of all processes that ever were."""
        return [member.log for member in self._started]

    def _alive(self) -> list[Member]:
        return [member for member in self._started if member.process.poll() is None]

    def _replace(self, place: int) -> Member:
        member = self._workers[place]
        self._workers[place] = self._start_worker(place)
        return member

    def _start_worker(self, place: int) -> Member:
        environ = self._release(Kind.ROLL_WORKER, place)
        models = {} if self._older else {"MOCHI_MODELS": models_of(place, self._groups)}
        if not self._older:
            models["MOCHI_LORAS"] = loras_of(place)
        return self._start("worker", environ | models | (GROUP if place < self._groups else {}))

    def _start_gateway(self, place: int) -> Member:
        environ = self._release(Kind.ROLL_GATEWAY, place)
        models = {} if self._older else {"MOCHI_MODELS": SERVED[0]} | CACHE
        return self._start("server", environ | models | {"MOCHI_PORT": str(self._ports[place])})

    def _release(self, kind: Kind, place: int) -> dict[str, str]:
        """The variables of a process, which say of which release it is."""
        is_older = self._older is not None and (kind, place) not in self._rolled
        return self._environ | ({"PYTHONPATH": str(self._older)} if is_older else {})

    def _start(self, package: str, environ: dict[str, str]) -> Member:
        kind = "gateway" if package == "server" else package
        log = self._folder / f"{kind}-{len(self._started):03}.log"
        process = spawn(package, environ, log, WITH_PARENT, stdin=self._parent_watch[0])
        self._started.append(Member(process, log))
        return self._started[-1]

    def _tell(self, what: What, member: Member) -> None:
        self._note(Event(time.time(), what, worker=member.name))

    def _note_exit(self, member: Member, expected: Container[int] = ()) -> None:
        self._tell(What.EXITED, member)
        status = member.process.returncode
        if status not in expected:
            self.died.append(f"{member.name} with status {status}")
