"""What a worker tells of itself with every beat, and everybody else reads at the broker."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from models.engine import Traits


@dataclass(frozen=True)
class LiveWorker:
    """A worker that has the model loaded.

    The broker keeps it as one text, the member of a sorted set: a name can neither be there without
    its engine nor leave it behind, and a broker that has lost everything has it again with the next
    beat.
    """

    name: str
    engine: Traits

    def __str__(self) -> str:
        return _JSON.dump_json(self).decode()


_JSON = TypeAdapter(LiveWorker)


def read_all(members: Iterable[str]) -> list[LiveWorker]:
    """Those that the broker keeps, by name. What we cannot read, no worker of ours wrote."""
    workers = []
    for member in members:
        try:
            workers.append(_JSON.validate_json(member))
        except ValidationError:
            continue
    return sorted(workers, key=lambda worker: worker.name)


def new_worker_name() -> str:
    """A name for this process: `HOST-PID-RANDOM`."""
    return f"{worker_name_prefix()}{os.getpid()}-{uuid4().hex[:8]}"


def worker_name_prefix() -> str:
    """How the names of all workers of this host begin."""
    return f"{platform.node()}-"
