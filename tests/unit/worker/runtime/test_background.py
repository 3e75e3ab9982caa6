"""The sweep of videos, with the real store and real files."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redis import Redis

from tests.support.jobs import submit
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
    sweep(store, outputs, retention_seconds=RETENTION_SECONDS)
    left = {path.name for path in folder.iterdir()}
    assert left == set(names.values()) - {names["orphan"], names["orphan draft"]}
