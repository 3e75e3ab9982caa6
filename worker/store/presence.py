"""Worker presence records in the broker."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from models.engine import Traits
from models.request.params import MODEL
from worker.job import LORA


@dataclass(frozen=True)
class LiveWorker:
    """A worker that has the model loaded.

    The broker keeps it as one text, the member of a sorted set, so name and engine come and go
    together, and the next heartbeat restores a record that the broker has lost.
    """

    name: str
    engine: Traits
    store: str = ""
    """The mark of the store that it writes videos to; see `Outputs.mark`."""
    pause: str = ""
    """Why it takes no request for a while, for clients; empty if it takes them."""
    version: str = ""
    """Of its build. Workers of releases before this field tell none."""
    models: tuple[str, ...] = (MODEL,)
    """Slugs of those that it runs. Workers of releases before this field run the default one."""
    identity: str = ""
    """Of all that its files depend on besides the request; see `worker.outputs.identity`."""

    @property
    def queues(self) -> tuple[str, ...]:
        """Those from which it takes requests, unless it pauses; see `worker.job.queue_of`."""
        return queues_of(self.models, self.engine)

    @property
    def sources(self) -> tuple[str, ...]:
        """The same for scripts: behind the name of a queue with LoRAs come those that it has."""
        loras = ":" + ",".join(self.engine.loras)
        return tuple(queue + (loras if queue.endswith(LORA) else "") for queue in self.queues)

    def takes(self, queue: str) -> bool:
        """Whether it takes requests from a queue now. With LoRAs, those that it has."""
        return not self.pause and queue in self.queues

    def has_loras(self, names: Iterable[str]) -> bool:
        return self.engine.loras.keys() >= set(names)

    def __str__(self) -> str:
        return _JSON.dump_json(self).decode()


def queues_of(models: Iterable[str], engine: Traits) -> tuple[str, ...]:
    """The queues of a worker: of each of its models, and of its requests with LoRAs."""
    with_loras = [f"{model}{LORA}" for model in models] if engine.loras else []
    return (*models, *with_loras)


_JSON = TypeAdapter(LiveWorker)


def read_all(members: Iterable[str]) -> list[LiveWorker]:
    """By name. Invalid members, which no worker wrote, are left out."""
    workers = []
    for member in members:
        with suppress(ValidationError):
            workers.append(_JSON.validate_json(member))
    return sorted(workers, key=lambda worker: worker.name)


def new_worker_name() -> str:
    """A name for this process: `HOST-PID-RANDOM`."""
    return f"{worker_name_prefix()}{os.getpid()}-{uuid4().hex[:8]}"


def worker_name_prefix() -> str:
    """Common prefix of the names of this host's workers."""
    return f"{platform.node()}-"
