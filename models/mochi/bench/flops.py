"""Floating-point operations of the transformer, by formula: what a speed is measured against.

A product of matrices (m, k) and (k, n) is 2·m·k·n operations, and nothing else is counted, as in
`torch.utils.flop_counter`, with which a test compares this. Text is counted as long as it is: what
the stock pipeline does for padding is no use, and slower for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def step_flops(config: Any, visual_tokens: int, text_lengths: Sequence[int]) -> int:  # noqa: ANN401
    """Of one denoising step, after the first.

    Args:
        config: of a `MochiTransformer3DModel`.
        visual_tokens: of the video.
        text_lengths: tokens of the text in each branch of guidance.
    """
    width: int = config.num_attention_heads * config.attention_head_dim
    patch: int = config.patch_size**2 * config.in_channels
    # The last block leaves the text alone, so there it is no query, and is not projected back.
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
    """Width of the feed-forward network, as `MochiTransformerBlock` has it."""
    return 4 * width * 2 // 3
