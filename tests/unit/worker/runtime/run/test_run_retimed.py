"""A run that gives a kept video another fps: no step of the engine, and what a fault leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from tests.support.jobs import find, pop, submit, waiting
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Job, Status
from worker.outputs.local import LocalOutputs

STILLS = {"poster": True, "last_frame": True}


class Damaged(LocalOutputs):
    """Videos that can be read, and are none."""

    @override
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        yield b"no video"


@pytest.fixture(autouse=True)
def _identity(desk: Desk) -> None:
    desk.heartbeat.worker = replace(desk.heartbeat.worker, identity="some weights")


def run(desk: Desk, fps: float, **files: Any) -> tuple[Job, int]:
    """A new request with the frames of all here, after its run, and the steps of the engine."""
    keys = {"cache_key": f"{fps}", "frames_key": "any"}
    request_id = submit(desk.url, frames=3, fps=fps, record=keys, **files)
    assert pop(desk.redis) == request_id
    engine = Hooked()
    desk.runner(engine).run(request_id)
    return find(desk.url, request_id), engine.steps


def test_the_files_are_those_of_a_run_without_a_step(desk: Desk) -> None:
    run(desk, 16, **STILLS)
    other, steps = run(desk, 24, **STILLS)
    assert (other.status, other.cached, steps) == (Status.COMPLETED, 1, 0)
    found = {path.name: path.read_bytes() for path in desk.folder.iterdir()}
    assert len(found) == 6
    desk.redis.flushall()
    again, steps = run(desk, 24, **STILLS)
    assert (again.cached, steps) == (0, 10)
    path = desk.outputs.path(again.file_name)
    assert path.read_bytes() == found[other.file_name]
    assert again.stills == other.stills


def test_a_damaged_file_is_made_again(desk: Desk) -> None:
    run(desk, 16)
    desk.outputs = Damaged(desk.folder)
    other, steps = run(desk, 24)
    assert (other.status, other.cached, steps) == (Status.COMPLETED, 0, 10)
    assert len(desk.files()) == 2


def test_a_worker_that_drains_does_not_begin_a_run_for_a_file_that_it_cannot_retime(
    desk: Desk,
) -> None:
    """The signal may have ended ffmpeg."""

    class Signalled(Damaged):
        @override
        def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
            desk.stop.ask()
            return super().read(name, start, stop)

    run(desk, 16)
    desk.outputs = Signalled(desk.folder)
    other, steps = run(desk, 24)
    assert (other.status, other.attempt, steps) == (Status.QUEUED, 0, 0)
    assert waiting(desk.redis) == [other.request_id]
    assert len(desk.files()) == 1
