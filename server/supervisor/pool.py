"""The workers of one machine: one for each card, or each group of cards."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from server.settings import ServerSettings
from server.supervisor.children import Child

WORKER_HANG_SECONDS = 45.0
"""Of a worker's heartbeat, beyond `stall_seconds`: before that, it ends itself and logs why."""


class WorkerPool:
    """Starts a worker for each of its devices, and keeps them running."""

    def __init__(self, settings: ServerSettings, environ: dict[str, str]) -> None:
        hang_seconds = settings.stall_seconds + WORKER_HANG_SECONDS
        self._alive_file = settings.alive_file
        own = environ | {"MOCHI_ALIVE_FILE": ""}  # its workers would all touch the same file
        self.workers = [
            Child(
                "worker", own | {"MOCHI_DEVICE": device}, hang_seconds=hang_seconds, device=device
            )
            for device in devices(settings)
        ]

    @property
    def serving(self) -> int:
        """Workers that have loaded the model and give signs of life."""
        return sum(worker.is_serving for worker in self.workers)

    def watch(self) -> bool:
        """Restart what has died or hangs. False once every worker rejects its settings.

        One alone may have a bad card: the others go on.
        """
        for worker in self.workers:
            worker.watch()
        left = [worker for worker in self.workers if not worker.is_rejecting]
        if self._alive_file and left and all(worker.is_serving for worker in left):
            with suppress(OSError):  # the disk may be full
                Path(self._alive_file).touch()
        return bool(left)


def devices(settings: ServerSettings) -> list[str]:
    """The first device of each worker, as no GPU has room for two engines."""
    if settings.workers == 1:
        return [settings.device]
    first = int(settings.device.partition(":")[2] or 0)
    gpus = settings.gpus_per_video
    return [f"cuda:{first + index * gpus}" for index in range(settings.workers)]
