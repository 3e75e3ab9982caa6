from __future__ import annotations

from typing import Any

import pytest

from models.engine import Engine
from models.mock.fake_engine import FakeEngine
from models.request.params import GenerateParams
from tests.support.models.checkpoints import Kept, abandon, run


def params(prompt: str = "a cat", frames: int = 3, **others: Any) -> GenerateParams:
    return GenerateParams(prompt=prompt, frames=frames, steps=10, **others)


def ignore(step: int, total: int) -> None:
    pass


def frames_of(asked: GenerateParams) -> list[bytes]:
    return list(FakeEngine(0).generate(asked, ignore).frames)


def test_it_is_an_engine() -> None:
    engine: Engine = FakeEngine(0.25)
    assert str(engine.traits) == "light mock, CPU"


def test_the_same_parameters_give_the_same_frames() -> None:
    first = frames_of(params(seed=1))
    assert frames_of(params(seed=1)) == first
    assert frames_of(params(seed=2)) != first


@pytest.mark.parametrize("prompt", ["fake:fail no", "fake:oom", "fake:crash", "fail", "crash"])
def test_no_prompt_is_a_command(prompt: str) -> None:
    clip = FakeEngine(0).generate(params(prompt), ignore)
    assert len(list(clip.frames)) == 3
    assert clip.warnings == ()


def test_each_step_takes_its_time_and_is_reported() -> None:
    slept: list[float] = []
    steps: list[tuple[int, int]] = []
    FakeEngine(0.5, slept.append).generate(params(), lambda *step: steps.append(step))
    assert slept == [0.5] * 10
    assert steps == [(step, 10) for step in range(11)]


def test_an_exception_from_on_step_ends_the_generation_untouched() -> None:
    stop = KeyboardInterrupt()

    def abandon(step: int, total: int) -> None:
        if step == 4:
            raise stop

    slept: list[float] = []
    with pytest.raises(KeyboardInterrupt) as raised:
        FakeEngine(0, slept.append).generate(params(), abandon)
    assert raised.value is stop
    assert len(slept) == 4


@pytest.mark.parametrize(
    ("every", "at", "done"), [(1, 1, 0), (1, 10, 9), (3, 3, 0), (3, 4, 3), (3, 10, 9), (10, 10, 0)]
)
def test_a_run_goes_on_where_another_one_was_abandoned(every: int, at: int, done: int) -> None:
    kept = Kept(every)
    abandon(FakeEngine(0), params(), kept, at)
    slept: list[float] = []
    frames, steps = run(FakeEngine(0, slept.append), params(), kept)
    assert frames == frames_of(params())
    assert steps == list(range(done + 1, 11))
    assert len(slept) == len(steps)
    assert kept.resumed_at == ([done] if done else [])


@pytest.mark.parametrize(("every", "saved"), [(1, 9), (4, 2), (5, 1), (10, 0)])
def test_it_keeps_every_so_many_steps_but_never_the_last(every: int, saved: int) -> None:
    kept = Kept(every)
    run(FakeEngine(0), params(), kept)
    assert kept.saved == saved


def test_a_foreign_or_damaged_checkpoint_is_ignored() -> None:
    kept = Kept(4)
    abandon(FakeEngine(0), params(), kept, at=5)
    for other in (params(seed=1), params("a dog"), params(frames=4)):
        assert run(FakeEngine(0), other, Kept(4, kept.data))[1] == list(range(1, 11))
    assert run(FakeEngine(0), params(), Kept(4, b"garbage"))[1] == list(range(1, 11))
