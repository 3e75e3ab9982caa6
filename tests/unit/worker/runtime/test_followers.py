"""The engine of a group of two processes, as a worker starts it, beside that of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Thread, current_thread
from typing import Any, NoReturn

import psutil
import pytest

from models.build import build_engine
from models.engine import Engine, Picture
from models.errors import EngineError
from models.group import LOADED, OUT_OF_MEMORY, Leader
from models.mochi.group import GroupEngine
from models.request.params import MODEL, GenerateParams
from tests.support.jobs import find, submit
from tests.support.models.checkpoints import AbandonedError, Kept, abandon, run
from worker.__main__ import run as run_worker
from worker.job import Status
from worker.process.systemd import Notifier
from worker.runtime.followers import _Follower, leading, refuse_gpu
from worker.runtime.rq_worker import EngineWorker
from worker.settings import WorkerSettings

STEPS = 10
LAUNCHER = "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER"
PROMPTS = ("", "a", "b" * 236, "c" * 2000)
"""Negative prompts of 0, 2, 60 and 256 tokens: a token is four characters, and there is an end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Engine:
    return build_engine(WorkerSettings(mock=True, data_dir=folder), folder)


@pytest.fixture(scope="module")
def group(folder: Path, alone: Engine) -> Iterator[Engine]:
    settings = WorkerSettings(mock=True, data_dir=folder, gpus_per_video=2)
    with pytest.MonkeyPatch.context() as environ:
        for name in filter(lambda name: name.startswith("MOCHI_"), list(os.environ)):
            environ.delenv(name)
        environ.setenv("MOCHI_MOCK", "true")
        environ.setenv("MOCHI_DATA_DIR", str(folder))
        environ.setenv(LAUNCHER, "")
        environ.delenv(LAUNCHER)
        others = {*psutil.Process().children()}  # such as the broker of other tests
        with leading(settings) as leader:
            (follower,) = {*psutil.Process().children()} - others
            assert os.environ[LAUNCHER] == follower.environ()[LAUNCHER] == "0"
            yield build_engine(settings, folder, leader)
            import torch.distributed as dist

            dist.destroy_process_group()
        assert not follower.is_running()


def params(frames: int = 13, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": STEPS, **others})


def frames_of(engine: Engine, asked: GenerateParams) -> list[bytes]:
    return list(engine.generate(asked, lambda _step, _steps: None).frames)


def test_a_follower_that_closes_its_link_and_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr("worker.runtime.followers.END_SECONDS", 0.01)
    others = {*psutil.Process().children()}
    with TemporaryFile() as file:
        follower = _Follower(1, 2, file.fileno())
        (process,) = {*psutil.Process().children()} - others
        process.suspend()
        with follower.link:
            follower.end_worker()
    assert statuses == [os.EX_TEMPFAIL]
    assert not process.is_running()


def test_a_follower_that_even_a_kill_does_not_end_keeps_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that waits in the driver of a card that is gone."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr("worker.runtime.followers.END_SECONDS", 0.01)
    monkeypatch.setattr("worker.runtime.followers.KILL_SECONDS", 0.01)
    with TemporaryFile() as file:
        follower = _Follower(1, 2, file.fileno())
        with monkeypatch.context() as stuck, follower.link:
            stuck.setattr(follower._process, "kill", lambda: None)
            ending = Thread(target=follower.end_worker, daemon=True)
            ending.start()
            ending.join(10)
        assert statuses == [os.EX_TEMPFAIL]
        follower._process.kill()
        follower._process.wait()


@pytest.mark.parametrize("negative_prompt", PROMPTS)
def test_a_group_makes_the_frames_of_one_process(
    group: Engine, alone: Engine, negative_prompt: str
) -> None:
    asked = params(negative_prompt=negative_prompt)
    assert frames_of(group, asked) == frames_of(alone, asked)


@pytest.mark.parametrize("frames", [1, 7, 26, 49])
def test_a_group_makes_videos_of_any_length(group: Engine, alone: Engine, frames: int) -> None:
    assert frames_of(group, params(frames)) == frames_of(alone, params(frames))


@pytest.mark.parametrize("full", [0, 1])
def test_a_group_without_memory_fails_the_request_and_asks_for_another_start(
    redis_url: str, folder: Path, alone: Engine, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    monkeypatch.setattr(EngineWorker, "_install_signal_handlers", lambda _: None)
    statuses: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(os, "_exit", statuses.put)
    engine = alone._engines[MODEL]  # type: ignore[attr-defined]
    ours, theirs = Pipe()

    def fill(*_: object) -> NoReturn:
        if full == 0:
            raise RuntimeError("CUDA error: out of memory")
        theirs.send_bytes(OUT_OF_MEMORY)
        statuses.put(statuses.get())  # when this process has ended, the exchange fails
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(engine.core, "forward", fill)
    request_id = submit(redis_url)
    with ours, theirs:
        theirs.send_bytes(LOADED)
        leader = Leader(Path(), [ours], on_death=lambda _: None, on_full=refuse_gpu)
        led = GroupEngine(engine, leader)
        monkeypatch.setattr("worker.__main__.build_engine", lambda *_: led)
        settings = WorkerSettings(mock=True, data_dir=folder, redis_url=redis_url)
        statuses.put(run_worker("ann", settings, leader, Notifier()))
    job = find(redis_url, request_id)
    assert (job.status, job.error_code) == (Status.FAILED, "out_of_memory")
    seen = {statuses.get() for _ in range(statuses.qsize())}
    assert seen == {os.EX_TEMPFAIL}


def test_rank_0_encodes_ahead_for_its_group(group: Engine, alone: Engine) -> None:
    asked = params(prompt="a heron", negative_prompt="dim")
    encoded = []
    encoder = group._engines[MODEL]._engine.text_encoder._encoder  # type: ignore[attr-defined]
    hook = encoder.register_forward_hook(lambda *_: encoded.append(current_thread().name))
    assert group.encode_ahead
    ahead = Thread(target=group.encode_ahead, args=(asked,), name="ahead")
    ahead.start()
    ahead.join()
    frames = frames_of(group, asked)
    hook.remove()
    assert encoded == ["ahead", "ahead"]
    assert frames == frames_of(alone, asked)


def test_a_group_names_its_size(group: Engine, alone: Engine) -> None:
    assert (group.traits.gpus, alone.traits.gpus) == (2, 1)
    assert str(group.traits) == "mock weights, 2 x CPU, float32"


@pytest.mark.parametrize("at", [0, 1, 7, STEPS])
def test_a_video_that_is_abandoned_at_a_step_does_not_disturb_the_next(
    group: Engine, alone: Engine, at: int
) -> None:
    def leave(step: int, _: int) -> None:
        if step == at:
            raise AbandonedError

    with pytest.raises(AbandonedError):
        group.generate(params(), leave)
    assert frames_of(group, params()) == frames_of(alone, params())


def test_an_error_that_a_step_raises_is_passed_on(group: Engine, alone: Engine) -> None:
    def fail(*_: int) -> None:
        raise EngineError("as a mock scenario")

    with pytest.raises(EngineError, match="as a mock scenario") as caught:
        group.generate(params(), fail)
    assert not caught.value.ends_worker
    assert frames_of(group, params()) == frames_of(alone, params())


@pytest.mark.parametrize("drawn", [0, 1, 20])
def test_frames_that_are_not_drawn_do_not_disturb_the_next_video(
    group: Engine, alone: Engine, drawn: int
) -> None:
    frames = group.generate(params(49), lambda *_: None).frames
    for _ in range(drawn):
        next(frames)
    assert frames_of(group, params()) == frames_of(alone, params())


@pytest.mark.parametrize("resumes", ["group", "alone"])
def test_a_checkpoint_is_resumed_by_a_group_of_another_size(
    group: Engine, alone: Engine, resumes: str
) -> None:
    saves, loads = (alone, group) if resumes == "group" else (group, alone)
    kept = Kept(3)
    abandon(saves, params(), kept, at=7)
    frames, steps = run(loads, params(), kept)
    assert kept.resumed_at == [6]
    assert steps == [7, 8, 9, 10]
    assert frames == frames_of(alone, params())


def test_all_ranks_stop_after_the_steps_of_a_draft_and_finish_it(
    group: Engine, alone: Engine
) -> None:
    kept = Kept(0)
    assert run(group, params(), kept, 4) == run(alone, params(), None, 4)
    assert run(group, params(), kept) == (frames_of(alone, params()), [5, 6, 7, 8, 9, 10])
    assert kept.resumed_at == [4]


class Shown:
    every = 3

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def show(self, picture: Picture) -> None:
        self.pictures.append(picture)


def test_previews_are_those_of_one_process(group: Engine, alone: Engine) -> None:
    shown = []
    for engine in (group, alone):
        shown.append(Shown())
        engine.generate(params(), lambda *_: None, None, shown[-1])
    assert shown[0].pictures == shown[1].pictures
    assert [picture.step for picture in shown[0].pictures] == [3, 6, 9]
