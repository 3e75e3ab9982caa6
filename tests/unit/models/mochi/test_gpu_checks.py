"""The checks of tests/gpu on small models, so that they are known to work before a GPU is there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn

from models.mochi.engine import MochiEngine
from models.mochi.parts import Parts
from tests.gpu.checks import (
    Model,
    check_that_a_run_goes_on_where_another_was_abandoned,
    check_that_frames_are_the_same_twice,
    check_that_frames_reach_main_memory,
    check_that_it_survives_too_large_a_request,
    check_that_no_step_waits,
    check_that_streamed_blocks_change_nothing,
    error_of_compiling,
    errors_of_ours_and_stock,
    mock,
)
from tests.support.models.tiny_mochi import make_stock, randomise

CPU = torch.device("cpu")

stock = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(CPU, partial(mock, tmp_path_factory.mktemp("weights")), (48, 32))


@pytest.fixture(scope="module")
def engine(model: Model) -> MochiEngine:
    return model.engine()


def test_waits_are_looked_for_in_all_steps_but_the_first(engine: MochiEngine) -> None:
    strictness: list[str] = []
    assert check_that_no_step_waits(engine, strictness.append) == 9
    assert strictness == ["error"] * 9 + ["default"] * 2


def test_a_wait_in_a_step_is_not_overlooked(engine: MochiEngine) -> None:
    class WaitedError(Exception):
        pass

    def refuse(mode: str) -> None:
        if mode == "error":
            raise WaitedError

    with pytest.raises(WaitedError):
        check_that_no_step_waits(engine, refuse)


def test_frames_are_the_same_to_the_last_bit_twice(engine: MochiEngine) -> None:
    check_that_frames_are_the_same_twice(engine)


def test_a_run_goes_on_where_another_was_abandoned(engine: MochiEngine) -> None:
    check_that_a_run_goes_on_where_another_was_abandoned(engine)


def test_a_request_that_does_not_fit_leaves_the_engine_unharmed(
    engine: MochiEngine,
) -> None:
    @contextmanager
    def starved() -> Iterator[None]:
        def exhausted(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        hook = engine.core.blocks[-1].register_forward_pre_hook(exhausted)
        yield
        hook.remove()

    check_that_it_survives_too_large_a_request(engine, starved(), tensor_bytes)


def tensor_bytes() -> int:
    """Of all tensors that are alive, as `torch.cuda.memory_allocated` counts them on a GPU."""
    tensors = [each for each in gc.get_objects() if type(each) in {Tensor, nn.Parameter}]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_streamed_blocks_give_the_frames_of_resident_ones_to_the_last_bit(
    tmp_path: Path,
) -> None:
    # Two at least are streamed, and the last is not: the mock has too few.
    check_that_streamed_blocks_change_nothing(
        Model(CPU, partial(_three_blocks, tmp_path), (48, 32))
    )


def test_frames_reach_main_memory_unharmed() -> None:
    check_that_frames_reach_main_memory(CPU)


def test_compiled_blocks_are_as_exact_as_eager_ones() -> None:
    assert error_of_compiling(make_stock(3), CPU, backend="eager") < 1e-6


@stock
def test_ours_is_as_exact_as_stock() -> None:
    ours, theirs = errors_of_ours_and_stock(make_stock(6, torch.bfloat16), CPU)
    assert 0 < ours <= 1.1 * theirs


def _three_blocks(folder: Path) -> Parts:
    parts = mock(folder)
    config = dict(parts.transformer.config) | {"num_layers": 3}
    parts.transformer = MochiTransformer3DModel.from_config(config)
    randomise(parts.transformer)
    return parts
