"""What GPUs that share a video exchange, and how long a video takes then: counted, and estimated.

Nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BRANCHES = 2
PATCH_CHANNELS = 48
FLOAT32 = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer and its work.

    Attributes:
        tokens: visual ones.
        text: tokens of the prompt.
        width: of a visual token.
        blocks: the last one does not update the text.
        item_bytes: of a number in the blocks.
    """

    tokens: int
    text: int = 256
    width: int = 3072
    blocks: int = 48
    item_bytes: int = 2


def shares(tokens: int, cards: int) -> Sequence[int]:
    """Tokens of each card of a branch."""
    count = cards // BRANCHES
    return [tokens // count + (number < tokens % count) for number in range(count)]


def sent(shape: Shape, cards: int, number: int = 0) -> int:
    """Bytes that a card sends to others in a step.

    Args:
        shape: of the work.
        cards: in the group.
        number: of the card in its branch.
    """
    counts = shares(shape.tokens, cards)
    own, others = counts[number], shape.tokens - counts[number]
    heads = shape.width // len(counts)
    queries_keys_values = 3 * own * heads * (len(counts) - 1) * shape.blocks
    results = others * heads * shape.blocks
    text = (len(counts) - 1) * shape.text * heads * (shape.blocks - 1)
    patches = max(counts) * PATCH_CHANNELS * FLOAT32 * (cards - 1)
    return (queries_keys_values + results + text) * shape.item_bytes + patches


@dataclass(frozen=True)
class Connection:
    """How fast a card sends to the others.

    Attributes:
        bytes_a_second: in one direction, of a large exchange.
        seconds: that each exchange takes besides.
    """

    name: str
    bytes_a_second: float
    seconds: float = 30e-6


NVLINK = Connection("NVLink 4", 350e9)
PCIE = Connection("PCIe 5", 50e9)

GEMM, ATTENTION, MEMORY = 690e12, 620e12, 2.9e12
"""Rates of an H100 that the estimates of the engine use."""
FUSIBLE_BYTES = 195e9
"""Traffic of fusible operations in a step of 49 frames, compiled: see `fusion.py`."""
ELEMENTWISE_BYTES = FUSIBLE_BYTES / 14_310
"""Per visual token and step."""
GEMM_FLOP = 2 * 10.87e9
"""Per visual token and step, of both branches."""


def step_seconds(shape: Shape, cards: int, connection: Connection) -> float:
    """The estimate for a step of 1, 2, 4, 6 or 8 cards."""
    attention = BRANCHES * 4 * shape.tokens**2 * shape.width * shape.blocks
    alone = (
        GEMM_FLOP * shape.tokens / GEMM
        + attention / ATTENTION
        + ELEMENTWISE_BYTES * shape.tokens / MEMORY
    )
    if cards == 1:
        return alone
    exchanges = 1 + (2 * shape.blocks if cards > BRANCHES else 0)
    waits = sent(shape, cards) / connection.bytes_a_second + exchanges * connection.seconds
    return alone / cards + waits


def rows(steps: int = 30) -> list[str]:
    """The table of docs/operate/performance.md."""
    table = []
    for frames, tokens in ((49, 14_310), (160, 44_520)):
        shape = Shape(tokens)
        for cards in (1, 2, 4, 6, 8):
            cells = [
                f"{frames}",
                f"{cards}",
                f"{sent(shape, cards) / 1e9:.3f}" if cards > 1 else "0",
            ]
            for connection in (NVLINK, PCIE):
                seconds = steps * step_seconds(shape, cards, connection)
                gain = steps * step_seconds(shape, 1, connection) / seconds
                cells.append(f"{seconds:.1f} s ({gain:.1f}x)")
            table.append("| " + " | ".join(cells) + " |")
    return table
