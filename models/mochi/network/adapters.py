"""LoRAs beside the weights of the blocks, chosen for each request.

A layer computes W x + B (A x). A and B are buffers of a fixed rank that are filled between
requests, so no weight is read again, and nothing is compiled anew. Without a LoRA, a layer does
what it does without adapters, in the same graph.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.network.attention import pairs_to_halves
from models.mochi.network.transformer import Block, Core
from models.request.loras import MOST_AT_ONCE

BLOCK_LAYER = re.compile(r"transformer_blocks\.(?P<block>\d+)\.(?P<name>.+)")

PLACES = {
    "attn1.to_q": ("to_qk", 0),
    "attn1.to_k": ("to_qk", 1),
    "attn1.to_v": ("to_v", 0),
    "attn1.to_out.0": ("to_out", 0),
    "ff.net.0.proj": ("ff.net.0.proj", 0),
    "ff.net.2": ("ff.net.2", 0),
    "attn1.add_q_proj": ("text_to_qk", 0),
    "attn1.add_k_proj": ("text_to_qk", 1),
    "attn1.add_v_proj": ("text_to_v", 0),
    "attn1.to_add_out": ("text_to_out", 0),
    "ff_context.net.0.proj": ("text_ff.net.0.proj", 0),
    "ff_context.net.2": ("text_ff.net.2", 0),
}
"""Layers of a block of diffusers: the layer of `Block` that has their outputs, and which part."""
FUSED = ("to_qk", "text_to_qk")
"""Layers with two parts, for queries and keys; the last block's text has no queries."""

MULTIPLE = 8
"""Ranks are rounded up to it: tensor cores multiply 16 bytes at a time."""
BYTES = 2
"""Of a number of the buffers on a card, bfloat16."""


@dataclass(frozen=True)
class LowRank:
    """Adds `factor * up @ down` to the weight of a layer, of the shape `(out, in)`.

    Attributes:
        layer: its name in the transformer of diffusers.
        down: `(rank, in)`; of a convolution `(rank, in, height, width)`.
        up: `(out, rank)`; of a convolution `(out, rank, 1, 1)`.
        factor: scale times alpha / rank.
        source: the layer and its shapes as the file has them, for messages.
    """

    layer: str
    down: Tensor
    up: Tensor
    factor: float
    source: tuple[str, str] = ("", "")

    def fits(self, weight: Tensor) -> bool:
        return (
            self.down.dim() == self.up.dim() == weight.dim()
            and self.down.shape[1:] == weight.shape[1:]
            and self.up.shape[:2] == (weight.shape[0], self.down.shape[0])
            and math.prod(self.up.shape[2:]) == 1
        )

    def add_to(self, weight: Tensor) -> None:
        """Change `weight` in place: contiguous, float32, and one that `fits`."""
        up, down = (half.to(weight.device).float().flatten(1) for half in (self.up, self.down))
        # A copy of the largest layers is 200 MB, and takes longer than the product.
        weight.view(len(weight), -1).addmm_(up, down, alpha=self.factor)

    @property
    def place(self) -> Place | None:
        """None outside of the attention and the feed-forward networks of the blocks."""
        match = BLOCK_LAYER.fullmatch(self.layer)
        if match is None or match["name"] not in PLACES:
            return None
        return Place(int(match["block"]), *PLACES[match["name"]])


@dataclass(frozen=True)
class Place:
    """Where a layer of diffusers is in `Core`: block, layer of the block, and part of its rows."""

    block: int
    path: str
    part: int


@dataclass(frozen=True)
class NamedLora:
    """A LoRA that requests may name.

    Attributes:
        digest: identifies its numbers, on every host.
        changes: one for each layer; all have a `place`.
    """

    digest: str
    changes: tuple[LowRank, ...]


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it.

    Attributes:
        base: an `nn.Linear`, or a `Float8Linear` in its place.
        is_on: whether the adapter is added. A compiled block has a graph for each value.
        down: buffer, `(rank, in)`.
        up: buffer, `(out, rank)`.
    """

    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.is_on = False
        out, width = base.weight.shape
        for name, shape in (("down", (rank, width)), ("up", (out, rank))):
            self.register_buffer(name, base.weight.new_zeros(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        y: Tensor = self.base(x)
        if not self.is_on:
            return y
        return y + functional.linear(functional.linear(x, self.down), self.up)


class Adapters:
    """The LoRAs that requests may name, and the adapters of a transformer that hold their choice.

    All blocks have adapters of the same shapes, as they share compiled code. A layer that no LoRA
    changes has none.
    """

    def __init__(self, core: Core, loras: Mapping[str, NamedLora]) -> None:
        """Put adapters into `core`, which is not placed or quantised yet.

        Args:
            core: all changes fit its layers.
            loras: by name.
        """
        self._core = core
        self._ranks = ranks_of(loras.values())
        self._digests = {name: lora.digest for name, lora in loras.items()}
        self._layers: dict[tuple[int, str], Adapted] = {}
        self._filled: dict[str, float] = {}
        self._is_on = False
        blocks = [block for block in core.blocks if isinstance(block, Block)]
        self._changes = {
            name: [_in_our_order(change, blocks) for change in lora.changes]
            for name, lora in loras.items()
        }
        for number, block in enumerate(blocks):
            for path, ranks in self._ranks.items():
                self._adapt(number, block, path, sum(ranks))

    def identity(self, scales: Mapping[str, float]) -> str:
        """What a choice adds to the identity of latents: numbers and scales, whatever the names."""
        return str(sorted((self._digests[name], scale) for name, scale in scales.items()))

    def use(self, scales: Mapping[str, float]) -> None:
        """Compute with these LoRAs from now on; with none, in the same bytes as without adapters.

        Args:
            scales: of each LoRA by name, at most `MOST_AT_ONCE`; 1 is as trained.
        """
        if scales and scales != self._filled:
            self._filled = {}  # an exception would leave a mixture
            self._fill(scales)
            self._filled = dict(scales)
        if self._is_on != bool(scales):
            self._is_on = bool(scales)
            for layer in self._core.blocks.modules():
                if isinstance(layer, Adapted):
                    layer.is_on = self._is_on
            self._core.fetch_buffers(self._is_on)

    def _adapt(self, number: int, block: Block, path: str, rank: int) -> None:
        parent_path, _, name = path.rpartition(".")
        if not hasattr(block, path.partition(".")[0]):
            return  # of the last block, which does not update the text
        parent = block.get_submodule(parent_path)
        base = getattr(parent, name)
        self._layers[number, path] = Adapted(base, rank)
        setattr(parent, name, self._layers[number, path])

    def _fill(self, scales: Mapping[str, float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # an abandoned run may still read the buffers
        offsets: dict[Place, int] = defaultdict(int)
        for layer in self._layers.values():
            layer.down.zero_()
            layer.up.zero_()
        for name, scale in scales.items():
            for change in self._changes[name]:
                place = change.place
                adapted = self._layers.get((place.block, place.path)) if place else None
                if place and adapted:
                    first = sum(self._ranks[place.path][: place.part]) + offsets[place]
                    offsets[place] += len(change.down)
                    _put(change, adapted, place, first, scale)


def _put(change: LowRank, layer: Adapted, place: Place, first: int, scale: float) -> None:
    """Write a LoRA's share of a layer into its buffers, from the rank `first` on."""
    rank, out = len(change.down), len(change.up)
    ranks = slice(first, first + rank)
    # The keys are last, also where there are no queries.
    row = layer.up.shape[0] - out if place.part else 0
    if place.path in FUSED and not place.part and layer.up.shape[0] == out:
        return  # queries of the last block's text, which nothing reads
    layer.down[ranks].copy_(change.down)
    layer.up[row : row + out, ranks].copy_(change.up.float() * (change.factor * scale))


def _in_our_order(change: LowRank, blocks: list[Block]) -> LowRank:
    """Queries and keys in the order of `pairs_to_halves`."""
    place = change.place
    if place is None or place.path not in FUSED:
        return change
    head_dim = len(blocks[place.block].norm_q.weight)
    return replace(change, up=pairs_to_halves(change.up, head_dim))


def ranks_of(loras: Iterable[NamedLora]) -> dict[str, tuple[int, ...]]:
    """The rank of each part of each adapted layer: enough for any choice, in any block."""
    found: dict[Place, list[int]] = defaultdict(list)
    for lora in loras:
        for change in lora.changes:
            if change.place:
                found[change.place].append(len(change.down))
    ranks = {path: [0] * (1 + (path in FUSED)) for path in {place.path for place in found}}
    for place, each in found.items():
        most = sum(heapq.nlargest(MOST_AT_ONCE, each))
        needed = -(-most // MULTIPLE) * MULTIPLE
        ranks[place.path][place.part] = max(ranks[place.path][place.part], needed)
    return {path: tuple(parts) for path, parts in sorted(ranks.items())}


def buffer_bytes(loras: Iterable[NamedLora]) -> int:
    """Memory of the adapters of one block on a card; the last block has less."""
    loras = list(loras)
    ranks = ranks_of(loras)
    features: dict[str, int] = {}  # of the inputs and the outputs
    for lora in loras:
        for change in lora.changes:
            if place := change.place:
                parts = len(ranks[place.path])
                features[place.path] = change.down.shape[1] + parts * len(change.up)
    return BYTES * sum(sum(parts) * features[path] for path, parts in ranks.items())
