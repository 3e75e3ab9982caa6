from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.mochi.bench.flops import step_flops
from models.mochi.bench.measure import STOCK_DECODING
from models.mochi.bench.shapes import Request
from models.mochi.memory import profiles as memory
from models.mochi.network.attention import use_kernel
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.dummy import empty_dummy
from models.mochi.synthetic.mock import write_mock_checkpoint
from tests.bench.engine_counts import listing
from tests.bench.engine_counts.counts import (
    LARGEST,
    Counts,
    Memory,
    core_on_meta,
    count_memory,
    count_ours,
    count_stock,
    count_stock_decoding,
)
from tests.bench.engine_counts.graphs import Graphs, count_graphs
from tests.bench.engine_counts.tally import Tally, bytes_of, tallied
from tests.support.models.tiny_mochi import embeddings, make_stock, noise, our_conditions, take_over

BLOCKS = 2
WIDTH, TEXT_WIDTH, HEADS = 32, 16, 2
"""Of the mock's transformer."""
REQUEST = Request(frames=13, tokens=9, steps=10, size=(80, 48))


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def mock_on_meta(folder: Path) -> Parts:
    parts = Parts.read(write_mock_checkpoint(folder), Dtypes())
    modules: tuple[nn.Module, ...] = (parts.text_encoder, parts.transformer, parts.vae)
    for module in modules:
        module.to("meta")
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mock")


@pytest.fixture(scope="module")
def stock(folder: Path) -> Counts:
    return count_stock(mock_on_meta(folder), REQUEST)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Counts:
    return count_ours(mock_on_meta(folder), REQUEST)


# The tally, by hand


def test_a_product_of_matrices_is_one_launch() -> None:
    with tallied() as tally:
        on_meta(3, 5) @ on_meta(5, 7)
    assert tally.launches == {"products": 1, "attention": 0, "element-wise": 0, "rest": 0}
    assert tally.bytes["products"] == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert tally.flops == 2 * 3 * 5 * 7


def test_views_and_allocations_launch_nothing() -> None:
    x = on_meta(4, 6)
    with tallied() as tally:
        x.view(24).unsqueeze(0).expand(5, 24)[:, 3:].transpose(0, 1)
        torch.empty_like(x)
        x.new_empty(3)
    assert tally.all_launches == tally.flops == tally.syncs == 0


def test_what_is_repeated_by_broadcasting_is_read_once() -> None:
    row = on_meta(6).expand(4, 6)
    with tallied() as tally:
        row + on_meta(4, 6)
    assert tally.bytes["element-wise"] == 4 * (6 + 24 + 24)


def test_a_gather_reads_what_it_returns_and_the_indices() -> None:
    table, rows = on_meta(1000, 8), on_meta(2, dtype=torch.int64)
    with tallied() as tally:
        table.index_select(0, rows)
    assert tally.bytes["rest"] == 2 * 4 * 2 * 8 + 8 * 2


def test_a_copy_reads_its_source_and_writes_its_target() -> None:
    target = on_meta(4, 6, dtype=torch.bfloat16)
    with tallied() as tally:
        target[:2].copy_(on_meta(2, 6))
    assert tally.fusible_bytes == 2 * 6 * (2 + 4)


def test_operators_on_nothing_are_not_launched() -> None:
    with tallied() as tally:
        functional.linear(on_meta(1, 0, 8), on_meta(16, 8)) * 2
    assert tally.all_launches == 0


def test_attention_is_one_launch_with_the_operations_of_both_products() -> None:
    q, k = on_meta(1, 3, 10, 16), on_meta(1, 3, 12, 16)
    with tallied() as tally:
        functional.scaled_dot_product_attention(q, k, k)
    assert tally.launches["attention"] == tally.all_launches == 1
    assert tally.flops == 2 * 2 * 3 * 10 * 12 * 16


@pytest.mark.parametrize(
    ("asks", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: x + torch.tensor(2.0), 0),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.full((3,), 1.0, device="meta") * x[0, 0], 0),
    ],
)
def test_waits_for_the_device_are_counted(asks: object, waits: int) -> None:
    x = on_meta(2, 3)
    with tallied(found=[4]) as tally:
        assert callable(asks)
        asks(x)
    assert tally.syncs == waits


def test_nonzero_finds_what_it_is_told() -> None:
    with tallied(found=[0, 5]) as tally:
        shapes = [torch.nonzero(on_meta(9)).shape for _ in range(2)]
    assert shapes == [(0, 1), (5, 1)]
    assert tally.syncs == 2


def test_memory_is_live_until_its_last_view_is_gone() -> None:
    with tallied() as tally:
        a = on_meta(100) + 1  # 400 bytes for the sum; the input is freed
        assert tally.live == 400
        view = a[10:]
        del a
        assert tally.live == 400
        b = view * 2
        assert tally.live == 400 + 360
        del view
        assert tally.live == 360
        b.mul_(2)
        assert tally.live == 360
        del b
    assert tally.live == 0
    assert tally.peak == 400 + 400  # input and sum


def test_weights_do_not_count_as_live_but_what_is_held_does() -> None:
    weight, held = on_meta(50), on_meta(25)
    with tallied(held=[held, held[:3]]) as tally:
        out = weight * 2
    assert tally.live == 100 + 200
    del out
    assert bytes_of([weight, weight[1:], held]) == 300


# A step


def test_stock_waits_for_each_block_and_branch_and_ours_never(stock: Counts, ours: Counts) -> None:
    assert stock.step.syncs == 2 * BLOCKS
    assert ours.step.syncs == 0


def test_a_step_has_the_products_that_are_written_there(ours: Counts) -> None:
    # In each branch: the last layer. With text: 10 in a block, 7 in the last one, where the text
    # is not projected back and has no network. Without: 5, of the visual tokens. And once: patches.
    assert ours.step.launches["products"] == 1 + 2 + (10 + 7) + (5 + 5)
    assert ours.step.launches["attention"] == 2 * BLOCKS


def test_the_formula_counts_as_pytorch_does(ours: Counts, folder: Path) -> None:
    config = mock_on_meta(folder).transformer.config
    assert ours.step.flops == step_flops(config, REQUEST.visual_tokens, (0, REQUEST.tokens))


@pytest.mark.parametrize("lengths", [(0, 20), (7, 20), (0, 0)])
def test_the_formula_counts_as_pytorch_does_on_a_cpu(lengths: tuple[int, int]) -> None:
    transformer = make_stock()
    config = transformer.config
    conditioner, core = take_over(transformer)
    conditions = our_conditions(conditioner, embeddings(*lengths))
    latents = noise()
    core(latents, conditions, 0)  # makes the position tables, which are no part of a step
    # By products of matrices: the counter does not know a CPU's own attention.
    with use_kernel("math"), FlopCounterMode(display=False) as counter:
        core(latents, conditions, 1)
    tokens = latents.shape[2] * latents.shape[3] * latents.shape[4] // 4
    assert counter.get_total_flops() == step_flops(config, tokens, lengths)


def test_the_formula_gives_the_known_figures_of_mochi() -> None:
    config = empty_dummy(Dtypes()).transformer.config
    for frames, forward in ((49, 282), (52, 328), (85, 603), (160, 1668)):
        request = Request(frames)
        flops = step_flops(config, request.visual_tokens, (256, 256)) / 2 / 1e12
        assert flops == pytest.approx(forward, rel=0.01)


def test_stock_does_the_work_of_padding_and_ours_does_not(stock: Counts, ours: Counts) -> None:
    assert stock.step.flops > ours.step.flops
    assert stock.text.flops > 10 * ours.text.flops


def test_both_decode_with_the_same_convolutions_and_ours_in_less_memory(
    stock: Counts, ours: Counts
) -> None:
    # The work is the same, but for 9 more latent frames than were decoded at once.
    assert ours.decoding.flops == stock.decoding.flops
    assert ours.decoding.peak < stock.decoding.peak


def test_counts_can_be_subtracted() -> None:
    with tallied() as tally:
        on_meta(3) + 1
        before = tally.copy()
        on_meta(3, 3) @ on_meta(3, 3)
    since = tally - before
    assert since.all_launches == since.launches["products"] == 1
    assert isinstance(since, Tally)


# The compiler's plan

inductor = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
"""Importing the compiler uses what PyTorch itself calls deprecated."""


@inductor
def test_a_chain_of_element_wise_work_becomes_one_kernel() -> None:
    from tests.bench.engine_counts.fusion import plan  # noqa: PLC0415 (see `inductor`)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(on_meta(64))

        def forward(self, x: Tensor) -> Tensor:
            return ((x + 1) * self.weight).sigmoid() / 2

    planned = plan(Chain(), (on_meta(1000, 64),))
    assert (planned.kernels, planned.externs) == (1, 0)
    assert planned.bytes == 4 * (1000 * 64 * 2 + 64)


@inductor
def test_a_full_size_block_is_fused_into_few_kernels() -> None:
    from tests.bench.engine_counts.fusion import plan_block  # noqa: PLC0415 (see `inductor`)

    # In bfloat16, as on a GPU. Without fusing, the same moves 17 GB.
    dtypes = Dtypes(transformer=torch.bfloat16)
    block, last = core_on_meta(empty_dummy(dtypes, 2)).blocks
    tokens = Request(49).visual_tokens
    planned = plan_block(block, tokens, 60)
    assert planned.kernels <= 11
    assert planned.externs == 11
    assert planned.bytes < 2.1e9
    assert plan_block(last, tokens, 0).kernels <= 5


def test_there_are_six_graphs_and_no_breaks() -> None:
    assert count_graphs((20, 1, 0, 60), (9, 1), (10,)) == Graphs(graphs=6, breaks=0)


def test_equal_lengths_by_chance_make_no_more_graphs() -> None:
    # 30 tokens of text, 30 steps and 30 visual tokens at first.
    assert count_graphs((30, 20), (5, 9), (30, 10)) == Graphs(graphs=2, breaks=0)


# Memory


@pytest.fixture(scope="module")
def counted() -> Memory:
    return count_memory(chunks=(1,), with_stock=False)


def test_the_largest_request_is_one_that_the_api_allows() -> None:
    assert LARGEST.latent_frames == Request(160).latent_frames == 28


def test_the_estimate_of_denoising_is_enough(counted: Memory) -> None:
    assert counted.denoising <= memory.DENOISING <= 1.2 * counted.denoising


def test_the_estimate_of_decoding_is_enough(counted: Memory) -> None:
    for chunk, size in counted.decoding.items():
        assert size <= memory.decoding(chunk) <= 1.1 * size


def test_the_estimate_of_stock_decoding_is_enough() -> None:
    request = Request(85)
    size = count_stock_decoding(on_meta(*request.latent_shape)) / 2**30
    assert size <= STOCK_DECODING * request.latent_frames <= 1.05 * size


# The listing


def test_counts_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count: Callable[..., Any] = listing.count
    monkeypatch.setattr(listing, "count", lambda frames: count(frames, blocks=2))
    monkeypatch.setattr(listing, "count_graphs", lambda: Graphs(6, 0))
    monkeypatch.setattr(
        listing, "_compiled", lambda *_: (None, "This PyTorch's compiler cannot be asked")
    )
    memory = count_memory
    monkeypatch.setattr(
        listing,
        "count_memory",
        lambda blocks: memory((1,), blocks, with_stock=False),
    )
    listing.run([7], tmp_path / "out.json")
    said = capsys.readouterr().out
    for words in ("waits for the GPU", "One denoising step, 7 frames", "DENOISING", "cannot be"):
        assert words in said
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["lengths"][0]["stock"]["step"]["syncs"] == 2 * 2
    assert written["lengths"][0]["ours"]["step"]["syncs"] == 0
    assert written["graphs"] == {"graphs": 6, "breaks": 0}
