"""What goes on beside the runs of a worker, with the real store and real files."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from redis import Redis
from structlog.testing import capture_logs

from models.request.params import GenerateParams
from tests.support.jobs import find, params, pop, submit
from tests.support.stack import eventually
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Status
from worker.outputs.base import MARKER
from worker.outputs.local import LocalOutputs
from worker.runtime import background
from worker.runtime.background import LEAST_PRIORITY, start_encoding_ahead, sweep
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


# Prompts that are encoded ahead


class PanicException(BaseException):
    """As of the tokenizer, by PyO3."""


class Ahead:
    """A worker that waits at the end of a run; and what it encodes meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.encoded: list[GenerateParams] = []
        self.priorities: set[int] = set()
        self.fails = False
        self.goes_on = Event()
        self.ends = Event()
        self.goes_on.set()
        submit(desk.url, "the first")
        request_id = pop(desk.redis)
        engine = Hooked(lambda _: self.goes_on.wait(), self.ends.wait)
        runner = desk.runner(engine)
        self.run = Thread(target=runner.run, args=(request_id,))
        self.thread = start_encoding_ahead(self._encode, desk.store, desk.heartbeat, desk.stop)

    def _encode(self, asked: GenerateParams) -> None:
        self.encoded.append(asked)
        self.priorities.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        if self.fails:
            raise PanicException(asked.prompt)

    def finish(self) -> None:
        self.goes_on.set()
        self.ends.set()
        self.run.join()
        self.desk.stop.draining = True
        self.thread.join()


@pytest.fixture
def ahead(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ahead]:
    monkeypatch.setattr(background, "PEEK_SECONDS", 0.01)
    ahead = Ahead(desk)
    yield ahead
    if ahead.run.ident:
        ahead.finish()


def test_nothing_is_encoded_while_a_run_is_far_from_its_end(ahead: Ahead) -> None:
    submit(ahead.desk.url, "the second")
    ahead.goes_on.clear()
    ahead.run.start()
    eventually(lambda: ahead.desk.heartbeat.current_run)
    time.sleep(0.1)
    assert not ahead.encoded
    ahead.goes_on.set()
    eventually(lambda: ahead.encoded == [params("the second")])


def test_only_while_a_request_runs_the_next_is_encoded_once(ahead: Ahead) -> None:
    submit(ahead.desk.url, "the second")
    time.sleep(0.1)
    assert not ahead.encoded
    ahead.run.start()
    eventually(lambda: ahead.encoded == [params("the second")])
    submit(ahead.desk.url, "the third")  # behind it
    time.sleep(0.1)
    assert ahead.encoded == [params("the second")]
    pop(ahead.desk.redis)  # by another worker
    eventually(lambda: ahead.encoded[1:] == [params("the third")])


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_what_is_encoded_ahead_gives_way_to_all_else(ahead: Ahead) -> None:
    submit(ahead.desk.url)
    ahead.run.start()
    eventually(lambda: ahead.priorities == {LEAST_PRIORITY})
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) != LEAST_PRIORITY


def test_a_prompt_that_cannot_be_encoded_ahead_disturbs_nothing(ahead: Ahead) -> None:
    ahead.fails = True
    with capture_logs() as logs:
        failed = submit(ahead.desk.url, "a secret")
        ahead.run.start()
        eventually(lambda: ahead.encoded)
        ahead.desk.redis.delete(f"mochi:request:{failed}")  # nor does a record that is gone
        submit(ahead.desk.url, "another")
        pop(ahead.desk.redis)
        eventually(lambda: params("another") in ahead.encoded)
        ahead.finish()
    seen = [log for log in logs if log["event"] == "prompt.not_encoded_ahead"]
    assert {log["log_level"] for log in seen} == {"info"}
    assert "PanicException" in {log["reason"] for log in seen}
    assert "secret" not in str(logs)
    assert "run.completed" in [log["event"] for log in logs]


def test_a_worker_that_drains_encodes_nothing_more(
    ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead.run.start()
    eventually(lambda: (run := ahead.desk.heartbeat.current_run) and run.progress == 99)
    monkeypatch.setattr(background, "PEEK_SECONDS", 0.5)
    time.sleep(0.1)  # until the thread sleeps for so long
    request_id = submit(ahead.desk.url)
    ahead.desk.stop.draining = True
    ahead.thread.join(60)
    assert not ahead.thread.is_alive()
    assert find(ahead.desk.url, request_id).status is Status.QUEUED
    assert not ahead.encoded
