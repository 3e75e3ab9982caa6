"""Compiling the blocks for the GPU: once for all 48, whatever the prompt's and the video's length.

What was compiled is kept on disk, so that a restart does not pay again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from models.mochi.network.modulation import Tables
from models.mochi.network.transformer import Block

MOST_GRAPHS = 64
"""Should a kernel tell lengths apart after all, requests wait for a compiler rather than fail."""


def keep_on_disk(folder: Path) -> None:
    """Let compilers keep their results below `folder`, unless the environment names another."""
    # Torch sets this variable itself, to a folder below /tmp, when it is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in {None, default_cache_dir()}:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Have blocks compiled when they first run.

    There is a graph for texts of two tokens and more, one for a single token, and one for none, of
    an ordinary block and of the last: six at most.

    Args:
        blocks: of `Core`; their `forward` is replaced.
        backend: of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = MOST_GRAPHS  # noqa: SLF001
    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(
        Block.forward, fullgraph=True, backend=backend
    )

    def run(
        block: nn.Module, visual: Tensor, text: Tensor, tables: Tables, *step_and_rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, rope = step_and_rope
        for tensor in (visual, text, rope):
            maybe_mark_dynamic(tensor, 1)
        for table in tables:
            maybe_mark_dynamic(table, 0)
        return compiled(block, visual, text, tables, *step_and_rope)

    for block in blocks:
        block.forward = partial(run, block)
