"""The sweep of videos, with the real store and real files."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redis import Redis

from tests.support.jobs import submit
from tests.support.stack import eventually
from worker.outputs.base import MARKER
from worker.outputs.local import LocalOutputs
from worker.runtime.background import sweep
from worker.store.worker_side import WorkerStore

RETENTION_SECONDS = 60.0


def test_files_without_a_record_are_swept_and_all_others_left(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    outputs = LocalOutputs(tmp_path / "outputs")
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS)
    kept, gone = submit(redis_url), "00000000-0000-4000-8000-000000000000"
    names = {
        "kept": f"{kept}-{'0' * 12}.mp4",
        "kept draft": f"{kept}-{'1' * 12}.mp4.part",
        "orphan": f"{gone}-{'0' * 12}.mp4",
        "orphan draft": f"{gone}-{'1' * 12}.mp4.part",
        "fresh orphan": f"{gone}-{'2' * 12}.mp4",
        "fresh draft": f"{gone}-{'3' * 12}.mp4.part",
        "not ours": "holiday.mp4",
    }
    folder = outputs.draft(names["orphan"]).parent
    for what, name in names.items():
        (folder / name).write_bytes(b"video")
        if "fresh" not in what:
            old = time.time() - RETENTION_SECONDS - 1
            os.utime(folder / name, (old, old))
    sweep(store, outputs, retention_seconds=RETENTION_SECONDS, every=30)
    left = {path.name for path in folder.iterdir()} - {MARKER}
    assert left == set(names.values()) - {names["orphan"], names["orphan draft"]}


def test_one_of_many_workers_lists_a_shared_store_at_a_time(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Its list grows with the videos kept, and S3 charges for each."""
    stores = [
        WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS) for _ in range(3)
    ]
    shared, other = LocalOutputs(tmp_path / "shared"), LocalOutputs(tmp_path / "other")
    orphan = "00000000-0000-4000-8000-000000000000"

    def sweep_by(store: WorkerStore, outputs: LocalOutputs) -> bool:
        """Whether it looked: it has then removed an old file without a record."""
        file = outputs.draft(f"{orphan}-{'0' * 12}.mp4")
        file.write_bytes(b"video")
        os.utime(file, (0, 0))
        sweep(store, outputs, retention_seconds=RETENTION_SECONDS, every=0.5)
        return not file.exists()

    assert [sweep_by(store, shared) for store in stores] == [True, False, False]
    assert sweep_by(stores[0], other)
    eventually(lambda: sweep_by(stores[1], shared))  # the claim expires: its holder may be dead
