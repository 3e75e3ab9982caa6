"""Compiles the transformer's blocks for the GPU: once for all 48, whatever the lengths.

Compiled code is kept on disk for later starts.
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

MAX_GRAPHS = 64
"""Far above what is needed: if lengths are compiled separately after all, a request waits for the
compiler instead of failing."""


def keep_on_disk(folder: Path) -> None:
    """Let compilers keep their results below `folder`, unless the environment names another."""
    # Importing torch sets this variable itself, to a folder below /tmp.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in {None, default_cache_dir()}:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile blocks when they first run.

    There is a graph for texts of two tokens or more, one for a single token, and one for none, each
    for ordinary blocks and for the last: at most six.

    Args:
        blocks: of `Core`; their `forward` is replaced.
        backend: of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS  # noqa: SLF001
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
