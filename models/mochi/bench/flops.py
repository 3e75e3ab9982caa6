"""Floating-point operations of the transformer, by formula.

A product of matrices (m, k) and (k, n) counts 2·m·k·n operations, and nothing else counts, as in
`torch.utils.flop_counter`; a test compares the two. Text counts without the padding of the stock
pipeline, which is no useful work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def step_flops(config: Any, visual_tokens: int, text_lengths: Sequence[int]) -> int:  # noqa: ANN401 (diffusers has no types)
    """Operations of one denoising step, after the first.

    Args:
        config: of a `MochiTransformer3DModel`.
        visual_tokens: of the video.
        text_lengths: tokens of the text in each branch of guidance.
    """
    width: int = config.num_attention_heads * config.attention_head_dim
    patch: int = config.patch_size**2 * config.in_channels
    # In the last block the text is no query, and is not projected back.
    ordinary: int = config.num_layers - 1
    text_width: int = config.pooled_projection_dim
    visual = 2 * visual_tokens * (4 * width * width + 3 * width * _inner(width))
    embedding = 2 * 2 * visual_tokens * patch * width
    total = 0
    for length in text_lengths:
        tokens = visual_tokens + length
        text = 2 * length * (4 * text_width * width + 3 * text_width * _inner(text_width))
        last_text = 2 * length * 2 * text_width * width
        attention = 4 * tokens * width
        total += ordinary * (visual + text + attention * tokens)
        total += visual + last_text + attention * visual_tokens
        total += embedding
    # The patches are embedded once for all branches.
    return total - (len(text_lengths) - 1) * embedding // 2


def _inner(width: int) -> int:
    """Width of the feed-forward network, as in `MochiTransformerBlock`."""
    return 4 * width * 2 // 3
