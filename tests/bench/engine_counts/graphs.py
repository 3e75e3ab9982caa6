"""Counts how often the blocks are compiled, over prompts and videos of many lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._dynamo.utils import counters

from models.mochi.loading.compiling import compile_blocks
from models.mochi.network.modulation import Conditioner
from models.mochi.network.transformer import Core
from models.mochi.synthetic.mock import TEXT_WIDTH, tiny_transformer

TEXT_LENGTHS = (20, 60, 256, 1, 0)
LATENT_FRAMES = (9, 1, 10, 28)
STEPS = (30, 10)


@dataclass(frozen=True)
class Graphs:
    """The work of PyTorch's compiler.

    Attributes:
        graphs: compiled, of all blocks together.
        breaks: places that split a block into several graphs.
    """

    graphs: int
    breaks: int


def count_graphs(
    text_lengths: Sequence[int] = TEXT_LENGTHS,
    latent_frames: Sequence[int] = LATENT_FRAMES,
    steps: Sequence[int] = STEPS,
) -> Graphs:
    """Run three narrow blocks in every combination, captured as for a GPU but not compiled."""
    transformer = tiny_transformer(3).requires_grad_(False)
    conditioner, core = Conditioner(transformer), Core(transformer)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(core.blocks, backend="eager")
    with torch.no_grad():
        for length in text_lengths:
            for count in steps:
                conditions = conditioner([torch.randn(length, TEXT_WIDTH)], torch.zeros(count))
                for frames in latent_frames:
                    core(torch.randn(1, 12, frames, 4, 6), conditions, count - 1)
    return Graphs(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
