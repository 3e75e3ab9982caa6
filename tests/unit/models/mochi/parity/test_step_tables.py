"""Modulation and position tables beside what diffusers' layers compute."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.denoise import Schedule
from models.mochi.network.modulation import Condition, Conditioner
from models.mochi.network.transformer import rms_norm
from tests.support.models.parity import BF16, FLOAT32, STEPS
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    make_scheduler,
    make_stock,
    normal,
    take_over,
)

# Of stock's position tables, which switch autocast off.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


# Modulation tables


@dataclass
class Modulation:
    """Of all steps and two prompts, stock's beside ours.

    Attributes:
        stock: its layers.
        inputs: what stock's norms are told, `(30, width)` for each prompt.
        texts: the prompts as stock's blocks read them.
        conditions: ours.
    """

    stock: MochiTransformer3DModel
    inputs: list[Tensor]
    texts: list[Tensor]
    conditions: list[Condition]


@pytest.fixture(params=[FLOAT32, BF16], ids=str)
def modulation(request: pytest.FixtureRequest) -> Modulation:
    dtype: torch.dtype = request.param
    stock, prompts = make_stock(dtype=dtype), embeddings(0, 20, dtype=dtype)
    timesteps = Schedule.of(make_scheduler(), STEPS).timesteps.to(dtype)
    inputs, texts = [], []
    for prompt in prompts:
        # Not padded, and all steps at once: sums are in the same order, and equal to the last bit.
        conditioning, text = stock.time_embed(
            timesteps,
            prompt[None],
            torch.ones(1, len(prompt), dtype=torch.bool),
            hidden_dtype=dtype,
        )
        inputs.append(conditioning)
        texts.append(text)
    conditioner, _ = take_over(copy.deepcopy(stock))
    return Modulation(stock, inputs, texts, conditioner(prompts, timesteps))


def assert_table_is_of(table: Tensor, norm: nn.Module, inputs: Tensor) -> None:
    """All four factors of each step, and what the norm makes with the first."""
    x = normal(STEPS, 3, table.shape[2], dtype=inputs.dtype)
    normed, gate, scale_mlp, gate_mlp = norm(x, inputs)
    assert torch.equal((rms_norm(x, 1e-6) * table[:, :1]).to(x.dtype), normed)
    scale = norm.get_submodule("linear")(functional.silu(inputs)).chunk(4, dim=1)[0]
    for row, expected in enumerate(
        (1 + scale.float(), gate.tanh().float(), 1 + scale_mlp.float(), gate_mlp.tanh().float())
    ):
        assert torch.equal(table[:, row], expected)


@pytest.mark.parametrize("prompt", [0, 1])
def test_tables_hold_what_stock_s_norms_compute_at_every_step(
    modulation: Modulation, prompt: int
) -> None:
    *blocks, last = modulation.stock.transformer_blocks
    inputs, tables = modulation.inputs[prompt], modulation.conditions[prompt].blocks
    assert len(tables) == len(blocks) + 1
    for block, (visual, text) in zip(blocks, tables[:-1], strict=True):
        assert visual.dtype == text.dtype == FLOAT32
        assert_table_is_of(visual, block.norm1, inputs)
        assert_table_is_of(text, block.norm1_context, inputs)
    visual, text = tables[-1]
    assert_table_is_of(visual, last.norm1, inputs)
    x = normal(STEPS, 3, text.shape[2], dtype=inputs.dtype)
    assert text.shape[1] == 1
    expected = last.norm1_context(x, inputs)
    assert torch.equal((rms_norm(x, 1e-6) * text).to(x.dtype), expected)


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_last_norm_and_the_text_are_stock_s_too(modulation: Modulation, prompt: int) -> None:
    condition, inputs = modulation.conditions[prompt], modulation.inputs[prompt]
    scale, shift = modulation.stock.norm_out.linear(functional.silu(inputs)).float().chunk(2, 1)
    assert torch.equal(condition.output, torch.stack((1 + scale, shift), dim=1))
    assert torch.equal(condition.text, modulation.texts[prompt])


def test_tables_are_the_same_where_big_layers_visit_the_device() -> None:
    prompts, timesteps = embeddings(0, 20), torch.linspace(0, 999, 10)
    resident, _ = take_over(make_stock())
    visiting = Conditioner(make_stock())
    visiting.place(CPU, big_layers_too=False)
    homes = [parameter.data_ptr() for parameter in visiting.parameters()]
    for ours, theirs in zip(
        visiting(prompts, timesteps), resident(prompts, timesteps), strict=True
    ):
        assert torch.equal(ours.output, theirs.output)
        for (visual, text), (their_visual, their_text) in zip(
            ours.blocks, theirs.blocks, strict=True
        ):
            assert torch.equal(visual, their_visual)
            assert torch.equal(text, their_text)
    assert [parameter.data_ptr() for parameter in visiting.parameters()] == homes


def test_what_a_core_gets_is_never_a_view(modulation: Modulation) -> None:
    # Compiled blocks would be compiled anew for each offset into a tensor.
    for condition in modulation.conditions:
        for tensor in (condition.text, *(table for pair in condition.blocks for table in pair)):
            assert tensor.storage_offset() == 0
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


# Position tables


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (1, 30, 53), (2, 3, 4), (28, 5, 3), (3, 1, 7), (4, 15, 26)], ids=str
)
@pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=str)
def test_position_tables_are_stock_s_to_the_last_bit(
    grid: tuple[int, int, int], dtype: torch.dtype
) -> None:
    stock = make_stock(2, dtype)
    expected = stock.rope(stock.pos_frequencies, *grid, device=CPU, dtype=FLOAT32)
    _, core = take_over(copy.deepcopy(stock))
    cos, sin = core.rope.of(*grid)
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])
    assert grid[1:] == (1, 1) or cos.std() > 0.1  # positions matter


def test_position_tables_are_kept_for_the_latest_shape() -> None:
    _, core = take_over(make_stock(2))
    first = core.rope.of(2, 3, 4)
    assert core.rope.of(2, 3, 4) is first
    core.rope.of(1, 3, 4)
    again = core.rope.of(2, 3, 4)
    assert again is not first
    core.rope.to(CPU)
    assert core.rope.of(2, 3, 4) is not again
    assert torch.equal(core.rope.of(2, 3, 4), first)
