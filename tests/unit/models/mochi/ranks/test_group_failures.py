"""A group in which a card fails."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from models.errors import EngineBrokenError, OutOfMemoryError
from models.group import GO, LOADED, OUT_OF_MEMORY, Follower, Leader, Link, Member, Task
from models.mochi.engine import MochiEngine
from models.mochi.group import GroupEngine, follow
from models.mochi.loading.load import assemble_mock, read_weights
from models.mochi.network.ranks import Ranks
from models.mochi.parts import Dtypes
from models.request.params import GenerateParams

PARAMS = GenerateParams(prompt="a cat", frames=1, steps=10)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> MochiEngine:
    return assemble_mock(read_weights(checkpoint, Dtypes()), 0, Ranks())


@contextmanager
def led(engine: MochiEngine) -> Iterator[tuple[GroupEngine, Link, SimpleQueue[int]]]:
    """An engine with a follower, the follower's end of the link, and the ranks that have failed."""
    ours, theirs = Pipe()
    died: SimpleQueue[int] = SimpleQueue()
    with ours, theirs:
        theirs.send_bytes(LOADED)
        yield GroupEngine(engine, Leader(Path(), [ours], died.put, died.put)), theirs, died


def failing(engine: MochiEngine, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine.core, "forward", fail)


def ignore(_step: int, _steps: int) -> None:
    pass


def test_where_rank_0_has_too_little_memory_the_request_fails_and_the_worker_ends(
    engine: MochiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(engine, monkeypatch, torch.OutOfMemoryError())
    with led(engine) as (group, _, _), pytest.raises(OutOfMemoryError) as caught:
        group.generate(PARAMS, ignore)
    assert caught.value.ends_worker


def test_where_a_follower_has_too_little_memory_the_request_fails_alike(
    engine: MochiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(engine, monkeypatch, RuntimeError("Connection closed by peer"))
    with led(engine) as (group, link, full):
        link.send_bytes(OUT_OF_MEMORY)
        assert full.get(timeout=60) == 1
        with pytest.raises(OutOfMemoryError) as caught:
            group.generate(PARAMS, ignore)
    assert caught.value.ends_worker


def test_a_card_that_fails_otherwise_leaves_the_request_to_another_worker(
    engine: MochiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(engine, monkeypatch, RuntimeError("Connection closed by peer"))
    with led(engine) as (group, _, _), pytest.raises(EngineBrokenError):
        group.generate(PARAMS, ignore)


def test_a_request_that_is_abandoned_leaves_nothing_on_the_card(engine: MochiEngine) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(_step: int, _steps: int) -> None:
        raise Cancelled

    with led(engine) as (group, _, _):
        try:
            group.generate(PARAMS, cancel)
        except Cancelled as error:
            kept = weakref.ref(error)  # with the tensors in the frames of its traceback
        gc.collect()
        assert kept() is None


def test_the_end_of_a_follower_is_noticed(engine: MochiEngine) -> None:
    with led(engine) as (_, link, died):
        link.close()
        assert died.get() == 1


def test_a_leader_that_closes_expects_the_end_of_its_followers() -> None:
    ours, theirs = Pipe()
    died: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[str] = SimpleQueue()
    leader = Leader(Path(), [ours], died.put, died.put)
    Follower(Member(1, 2, Path()), theirs, on_death=lambda: ended.put("ended"))
    leader.close()
    assert ended.get() == "ended"
    theirs.close()
    ours.close()
    assert died.empty()


def followed(engine: MochiEngine, error: type[BaseException]) -> tuple[Link, Any]:
    """A follower until it fails; the leader's end of its link."""
    ours, theirs = Pipe()
    follower = Follower(Member(1, 2, Path()), theirs, on_death=lambda: None)
    ours.send_bytes(Task(PARAMS).to_json())
    ours.send_bytes(GO)
    with pytest.raises(error) as caught:
        follow(engine, follower)
    assert ours.recv_bytes() == LOADED
    return ours, caught


def test_a_follower_with_too_little_memory_tells_rank_0(
    engine: MochiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(engine, monkeypatch, torch.OutOfMemoryError())
    link, _ = followed(engine, torch.OutOfMemoryError)
    assert link.recv_bytes() == OUT_OF_MEMORY


def test_a_follower_that_fails_otherwise_just_ends(
    engine: MochiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(engine, monkeypatch, RuntimeError("illegal memory access"))
    link, _ = followed(engine, RuntimeError)
    assert not link.poll()
