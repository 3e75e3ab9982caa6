"""Compiles the transformer's blocks for the GPU: once for all 48, whatever the lengths.

Compiled code is kept on disk for later starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from models.mochi.network.transformer import Block

_Result = TypeVar("_Result")

MAX_GRAPHS = 64
"""Far above what is needed: if lengths are compiled separately after all, a request waits for the
compiler instead of failing."""


def keep_on_disk(folder: Path) -> None:
    """Let compilers keep their results below `folder`, unless the environment names another."""
    # Importing torch sets this variable itself, to a folder below /tmp.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in {None, default_cache_dir()}:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def compile_blocks(
    blocks: Iterable[nn.Module], backend: str = "inductor", *, in_halves: bool = False
) -> None:
    """Compile blocks when they first run.

    There is a graph for texts of two tokens or more, one for a single token, and one for none, each
    for ordinary blocks and for the last: at most six.

    Args:
        blocks: of `Core`; their methods are replaced.
        backend: of `torch.compile`.
        in_halves: compile what is before and after the attention, with twice the graphs: cards that
            share a video exchange tokens there.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS  # noqa: SLF001 (has no public name)
    blocks = list(blocks)
    for method in (Block.project, Block.update) if in_halves else (Block.forward,):
        compiled = torch.compile(method, fullgraph=True, backend=backend)
        for block in blocks:
            setattr(block, method.__name__, partial(_run, compiled, block))


def _run(
    compiled: Callable[..., _Result],
    block: nn.Module,
    visual: Tensor,
    text: Tensor,
    *rest: Any,  # noqa: ANN401 (of several methods)
) -> _Result:
    tables, _, *others = rest
    for tensor in (visual, text, *others):
        maybe_mark_dynamic(tensor, 1)
    for table in tables:
        maybe_mark_dynamic(table, 0)
    return compiled(block, visual, text, *rest)
