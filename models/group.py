"""How the processes that share a video agree: rank 0 leads, the others follow. Without torch.

Rank 0 sends a task once, as JSON, then `GO` before each step and each round of the decoding. So
all ranks end a video at the same step, whatever ends it: after it, the followers wait for `GO` and
get the next task. A link whose other end is closed means that its process is dead.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from models.request.catalogue import CATALOGUE
from models.request.params import GenerateParams

GO = b"go"
END = b"end"
LOADED = b"loaded"
OUT_OF_MEMORY = b"out of memory"

FULL = "A GPU of the group has too little memory for this video. Ask for fewer frames."

Link: TypeAlias = "Connection[Any, Any]"


class Abandoned(BaseException):
    """Leaves the engine of a follower, as rank 0 has left its own."""


@dataclass(frozen=True)
class Task:
    """A video that the ranks make together; see `Engine.generate`."""

    params: GenerateParams
    stop_after: int | None = None

    def to_json(self) -> bytes:
        params = self.params
        return json.dumps([params.model, params.model_dump_json(), self.stop_after]).encode()

    @classmethod
    def of_json(cls, message: bytes) -> Task:
        model, params, stop_after = json.loads(message)
        return cls(CATALOGUE[model].parameters.model_validate_json(params), stop_after)


class Member:
    """A process of a group.

    Attributes:
        rank: from 0.
        size: of the group.
        rendezvous: see `join_group`.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path) -> None:
        self.rank = rank
        self.size = size
        self.rendezvous = rendezvous


class Leader(Member):
    """Rank 0, with a link to each follower.

    Attributes:
        is_full: whether a follower's card has had too little memory.
        on_full: called with its rank, from a thread. It must end this process, which may wait for
            that card without end.
    """

    def __init__(
        self,
        rendezvous: Path,
        links: Sequence[Link],
        on_death: Callable[[int], None],
        on_full: Callable[[int], None],
    ) -> None:
        """Watch the followers.

        Args:
            rendezvous: see `Member`.
            links: to the ranks from 1.
            on_death: called with the rank of a follower that has ended, from a thread.
            on_full: see `Leader`.
        """
        super().__init__(0, len(links) + 1, rendezvous)
        self._links = links
        self._on_death = on_death
        self.on_full = on_full
        self.is_full = False
        self._loaded = threading.Semaphore(0)
        self._is_closed = False
        for rank, link in enumerate(links, start=1):
            threading.Thread(
                target=self._listen, args=(rank, link), name=f"rank-{rank}", daemon=True
            ).start()

    def wait_until_loaded(self) -> None:
        for _ in self._links:
            self._loaded.acquire()

    def ask(self, task: Task) -> None:
        """Begin a video."""
        self._tell(task.to_json())

    def agree(self) -> None:
        """Let the followers do the next step or round."""
        self._tell(GO)

    def close(self) -> None:
        """End the followers."""
        self._is_closed = True
        for link in self._links:
            with suppress(OSError):
                link.send_bytes(END)

    def _tell(self, message: bytes) -> None:
        for link in self._links:
            link.send_bytes(message)

    def _listen(self, rank: int, link: Link) -> None:
        try:
            while True:
                if link.recv_bytes() == LOADED:
                    self._loaded.release()
                else:
                    self.is_full = True
                    self.on_full(rank)
        except (EOFError, OSError):
            if not self._is_closed:
                self._on_death(rank)


class Follower(Member):
    """Another rank, with a link to rank 0."""

    def __init__(self, member: Member, link: Link, on_death: Callable[[], None]) -> None:
        """Listen to rank 0.

        Args:
            member: what this process is.
            link: to rank 0.
            on_death: called when rank 0 has ended, from a thread: this one may wait for its card.
        """
        super().__init__(member.rank, member.size, member.rendezvous)
        self._link = link
        self._on_death = on_death
        self._heard: SimpleQueue[bytes] = SimpleQueue()
        self._unread = b""
        threading.Thread(target=self._listen, name="rank-0", daemon=True).start()

    def report(self, message: bytes) -> None:
        self._link.send_bytes(message)

    def next_task(self) -> Task:
        message, self._unread = self._unread or self._heard.get(), b""
        return Task.of_json(message)

    def agree(self) -> None:
        """Wait until rank 0 does the next step or round.

        Raises:
            Abandoned: it has begun another video.
        """
        message = self._heard.get()
        if message != GO:
            self._unread = message
            raise Abandoned

    def _listen(self) -> None:
        try:
            while (message := self._link.recv_bytes()) != END:
                self._heard.put(message)
        except (EOFError, OSError):
            pass
        self._on_death()
