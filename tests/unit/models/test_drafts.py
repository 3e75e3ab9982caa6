"""Drafts: the first steps of a video, an estimate of it, and the run that finishes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.engine import Engine
from models.mochi.engine import MochiEngine
from models.mochi.loading.load import load
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.mock.fake_engine import FakeEngine
from models.request.params import GenerateParams
from models.settings import EngineSettings
from tests.support.models.checkpoints import Kept, abandon, run
from tests.support.models.mock_mochi import bare

STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def mochi(folder: Path) -> MochiEngine:
    return bare(write_mock_checkpoint(folder))


MAKERS: dict[str, Callable[[Path], Engine]] = {
    "light mock": lambda _: FakeEngine(0),
    "mock weights": lambda folder: load(EngineSettings(mock=True), folder),
    "mochi": lambda folder: bare(write_mock_checkpoint(folder)),
}


@pytest.fixture(scope="module", params=MAKERS)
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return MAKERS[request.param](folder)


def params(**others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": 2, "steps": STEPS, **others})


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_draft_runs_its_steps_and_its_finish_the_others_to_the_same_frames(
    engine: Engine, steps: int
) -> None:
    expected, _ = run(engine, params(), None)
    kept = Kept(every=0)
    draft, of_draft = run(engine, params(), kept, steps)
    finished, of_finish = run(engine, params(), kept)
    assert of_draft == list(range(1, steps + 1))
    assert of_finish == list(range(steps + 1, STEPS + 1))
    assert kept.resumed_at == [steps]
    assert finished == expected
    assert len(draft) == 2
    assert draft != expected


def test_a_draft_reports_its_own_number_of_steps(engine: Engine) -> None:
    reported: list[tuple[int, int]] = []
    engine.generate(params(), lambda *step: reported.append(step), None, None, 3)
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("every", "saved"), [(0, 1), (2, 3), (3, 2), (5, 1), (75, 1)])
def test_a_draft_saves_its_last_step_besides_every_so_many(
    engine: Engine, every: int, saved: int
) -> None:
    kept = Kept(every)
    run(engine, params(), kept, 5)
    assert kept.saved == saved
    assert run(engine, params(), kept)[1] == [6, 7, 8, 9, 10]


def test_a_finish_saves_checkpoints_on_its_way(engine: Engine) -> None:
    kept = Kept(3)
    run(engine, params(), kept, 4)
    abandon(engine, params(), kept, at=8)
    assert run(engine, params(), kept) == (run(engine, params(), None)[0], [7, 8, 9, 10])


def test_a_draft_resumes_between_its_steps_and_repeats_them_after_the_last(engine: Engine) -> None:
    kept = Kept(2)
    expected, _ = run(engine, params(), None, 5)
    abandon(engine, params(), kept, at=4, stop_after=5)
    assert run(engine, params(), kept, 5) == (expected, [3, 4, 5])
    assert run(engine, params(), kept, 5) == (expected, [1, 2, 3, 4, 5])
    assert kept.resumed_at == [2]


def test_a_draft_passes_over_a_checkpoint_behind_its_steps(engine: Engine) -> None:
    kept = Kept(8)
    abandon(engine, params(), kept, at=9)
    assert run(engine, params(), kept, 5)[1] == [1, 2, 3, 4, 5]
    assert kept.resumed_at == []


def test_another_request_does_not_resume_a_draft(engine: Engine) -> None:
    kept = Kept(0)
    run(engine, params(), kept, 5)
    assert len(run(engine, params(seed=2), kept)[1]) == STEPS


def test_the_estimate_comes_closer_to_the_video_with_every_step(mochi: MochiEngine) -> None:
    """Each step moves along its velocity; the estimate goes the rest of the way along the last."""
    video = _pixels(run(mochi, params(), None)[0])
    errors = [
        float(abs(_pixels(run(mochi, params(), None, steps)[0]) - video).mean())
        for steps in (1, 5, 9)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_with_a_step_cache_a_draft_leaves_no_checkpoint(mochi: MochiEngine) -> None:
    """No checkpoint has the state of the cache: a finish from one would have other frames."""
    cached, kept = replace(mochi, step_cache=0.5), Kept(1)
    draft, _ = run(cached, params(), kept, 5)
    assert len(draft) == 2
    assert kept.saved == 0
    assert run(cached, params(), kept) == run(cached, params(), None)


def _pixels(frames: list[bytes]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(b"".join(frames), np.uint8).astype(np.float64)
