"""Mochi's transformer, rearranged for inference over diffusers' layers.

The modulation is computed before the loop (`modulation.py`), the text has no padding, and the
projections to query, key and value are one. What is left of a block is joint attention, two
feed-forward networks, and norms in float32. Unlike diffusers, this does not round to bfloat16
between a norm and the rotation after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.attention_processor import MochiAttention
from diffusers.models.normalization import MochiRMSNorm
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.memory.streaming import StreamedBlocks
from models.mochi.network.attention import RopeTables, attend_jointly, pairs_to_halves, rotate
from models.mochi.network.modulation import Condition, Tables
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.step_cache import StepCache


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Scale the last dimension to a root mean square of 1, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class HeadNorm(nn.Module):
    """RMS norm of each head's channels, with a learned scale, in the order of `pairs_to_halves`."""

    def __init__(self, stock: MochiRMSNorm) -> None:
        super().__init__()
        weight = pairs_to_halves(stock.weight.data, len(stock.weight))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps: float = stock.eps

    def forward(self, x: Tensor) -> Tensor:
        """`(..., head_dim)` to the same shape, in float32."""
        return rms_norm(x, self.eps) * self.weight


class Block(nn.Module):
    """One transformer block. The last one does not update the text, which is not read after it."""

    def __init__(self, stock: MochiTransformerBlock) -> None:
        """Take over the layers of `stock` except its modulation. It is unusable afterwards."""
        super().__init__()
        attention = stock.attn1
        self.updates_text: bool = not stock.context_pre_only
        self.eps: float = stock.norm2.eps
        self.heads: int = attention.heads
        self.attend = attend_jointly
        self.norm_q = HeadNorm(attention.norm_q)
        self.norm_k = HeadNorm(attention.norm_k)
        self.norm_text_k = HeadNorm(attention.norm_added_k)
        self.to_qk = _fuse(attention, "to_q", "to_k")
        self.to_v = attention.to_v
        self.text_to_v = attention.add_v_proj
        self.to_out = attention.to_out[0]
        self.ff = stock.ff
        if self.updates_text:
            self.norm_text_q = HeadNorm(attention.norm_added_q)
            self.text_to_qk = _fuse(attention, "add_q_proj", "add_k_proj")
            self.text_to_out = attention.to_add_out
            self.text_ff = stock.ff_context
        else:
            self.text_to_qk = _fuse(attention, "add_k_proj")

    def forward(
        self, visual: Tensor, text: Tensor, tables: Tables, step: Tensor, rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            visual: `(1, N, width)`.
            text: `(1, L, text_width)`; L may be 0.
            tables: of this block and prompt.
            step: int64 `(1,)`, the row of the tables; a tensor, so that all steps share a graph.
            rope: from `RopeTables.of`.

        Returns:
            The new visual and text, of the same shapes and dtypes.
        """
        # In one expression, as names would keep the projections in memory during the update.
        attended = self.attend(*self.project(visual, text, tables, step, rope))
        return self.update(visual, text, tables, step, *attended)

    def project(
        self, visual: Tensor, text: Tensor, tables: Tables, step: Tensor, rope: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The arguments of `attend`, from those of `forward`."""
        for_visual, for_text = (table.index_select(0, step)[0] for table in tables)
        visual, text = self._modulate(visual, for_visual[0]), self._modulate(text, for_text[0])
        q, k = self._heads(self.to_qk(visual))
        *text_q, text_k = self._heads(self.text_to_qk(text))
        v, text_v = self.to_v(visual[0]), self.text_to_v(text[0])
        # Rounded before `cat`, so that the compiler writes each part into place at once.
        q, k = (
            rotate(norm(part), rope).to(v.dtype)
            for norm, part in ((self.norm_q, q), (self.norm_k, k))
        )
        of_text = [self.norm_text_q(part).to(v.dtype) for part in text_q]
        return [q, k, v], [*of_text, self.norm_text_k(text_k).to(v.dtype), text_v]

    def update(
        self,
        visual: Tensor,
        text: Tensor,
        tables: Tables,
        step: Tensor,
        *attended: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns, from its arguments and the results of `attend`."""
        new_visual, new_text = attended
        for_visual, for_text = (table.index_select(0, step)[0] for table in tables)
        visual = visual + self._modulate(self.to_out(new_visual), for_visual[1])
        new_visual = self.ff(self._modulate(visual, for_visual[2]))
        visual = visual + self._modulate(new_visual, for_visual[3])
        if self.updates_text:
            text = text + self._modulate(self.text_to_out(new_text), for_text[1])
            new_text = self.text_ff(self._modulate(text, for_text[2]))
            text = text + self._modulate(new_text, for_text[3])
        return visual, text

    def _modulate(self, x: Tensor, factor: Tensor) -> Tensor:
        return (rms_norm(x, self.eps) * factor).to(x.dtype)

    def _heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """`(1, N, k * heads * head_dim)` to k times `(1, N, heads, head_dim)`."""
        _, tokens, channels = projected.shape
        head_dim = self.norm_q.weight.shape[0]
        parts = channels // (self.heads * head_dim)
        return projected.view(1, tokens, parts, self.heads, head_dim).unbind(2)


class Core(nn.Module):
    """The part of the transformer that runs at every step: all but the modulation."""

    def __init__(self, stock: MochiTransformer3DModel) -> None:
        """Take over the layers of `stock` except `Conditioner`'s. It is unusable afterwards."""
        super().__init__()
        self.patch_size: int = stock.config.patch_size
        self.patch_embed = stock.patch_embed
        self.rope = RopeTables(stock)
        self.blocks = nn.ModuleList(map(Block, stock.transformer_blocks))
        self.eps: float = stock.norm_out.norm.eps
        self.proj_out: nn.Linear = stock.proj_out
        self._streamed: StreamedBlocks | None = None
        self._ranks: Ranks = ALONE

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_out.weight.dtype

    def place(self, device: torch.device, *, streamed: int = 0) -> None:
        """Move to `device`; so many of the first blocks, but not the last, stay in main memory."""
        self.rope.to(device)
        if streamed:
            # The first, as they are fetched while the last of the step before work.
            streamed = min(streamed, len(self.blocks) - 1)
            self._streamed = StreamedBlocks(list(self.blocks[:streamed]), device)
            self.blocks = nn.ModuleList((*self._streamed.copies, *self.blocks[streamed:]))
        self.to(device)

    def fetch_buffers(self, is_needed: bool) -> None:  # noqa: FBT001 (its name says it)
        """Whether the buffers of streamed blocks come with their weights from now on."""
        if self._streamed:
            self._streamed.with_buffers = is_needed

    def join(self, ranks: Ranks) -> None:
        """Share each video with other cards. Call it after `place`."""
        self._ranks = ranks
        self.rope.keep(ranks.share)
        for block in self.blocks.modules():
            if isinstance(block, Block) and ranks.shares > 1:
                block.attend = ranks.attend

    def forward(
        self,
        latents: Tensor,
        conditions: Sequence[Condition],
        step: int,
        cache: StepCache | None = None,
    ) -> list[Tensor]:
        """The velocity of the latents under each condition.

        Each block runs for all conditions before the next, so streamed blocks are fetched once.

        Args:
            latents: `(1, channels, T, h, w)`, of any float dtype.
            conditions: one for each branch of guidance that is this card's; see `Ranks`.
            step: index into the tables of the conditions.
            cache: of this request; skips blocks, and is lossy.

        Returns:
            float32, of the shape of `latents`, one for each branch of guidance.
        """
        _, _, frames, height, width = latents.shape
        grid = (frames, height // self.patch_size, width // self.patch_size)
        streams = self._through_blocks(self._tokens(latents), conditions, step, grid, cache)
        patches = [
            self._patches(visual[0], condition.output[step])
            for visual, condition in zip(streams, conditions, strict=True)
        ]
        return [self._velocity(branch, grid) for branch in self._ranks.gather(patches)]

    def _through_blocks(
        self,
        visual: Tensor,
        conditions: Sequence[Condition],
        step: int,
        grid: tuple[int, int, int],
        cache: StepCache | None,
    ) -> list[Tensor]:
        rope = self.rope.of(*grid)
        row = torch.full((1,), step, device=visual.device)
        visuals = [visual] * len(conditions)
        texts = [condition.text for condition in conditions]
        for index, block in enumerate(self._blocks()):
            entered = list(visuals)
            for branch, condition in enumerate(conditions):
                visuals[branch], texts[branch] = block(
                    visuals[branch], texts[branch], condition.blocks[index], row, rope
                )
            if cache and index == 0 and (guessed := cache.guess(entered, visuals)):
                return guessed
        if cache:
            cache.keep(visuals)
        return visuals

    def _blocks(self) -> Iterator[nn.Module]:
        """All blocks in order, each on the device when it is yielded."""
        if self._streamed is None:
            yield from self.blocks
        else:
            yield from self._streamed
            yield from self.blocks[len(self._streamed.copies) :]

    def _tokens(self, latents: Tensor) -> Tensor:
        """`(1, channels, T, h, w)` to this card's visual tokens, `(1, N, width)`."""
        pictures = latents.to(self.dtype).transpose(1, 2).flatten(0, 1)
        tokens: Tensor = self.patch_embed(pictures)
        # A copy: blocks would be compiled anew for a view or for other strides.
        own = self._ranks.share(tokens.flatten(0, 1))
        return own.unsqueeze(0).clone(memory_format=torch.contiguous_format)

    def _patches(self, visual: Tensor, modulation: Tensor) -> Tensor:
        """Visual tokens, `(N, width)`, to patches of the velocity, `(N, channels)`, in float32."""
        factor, shift = modulation
        normed = functional.layer_norm(visual.float(), visual.shape[-1:], eps=self.eps)
        patches: Tensor = self.proj_out((normed * factor + shift).to(self.dtype))
        return patches.float()

    def _velocity(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The patches of all tokens to a velocity of the latents' shape."""
        frames, rows, columns = grid
        patch = self.patch_size
        latents = patches.view(frames, rows, columns, patch, patch, -1).permute(5, 0, 1, 3, 2, 4)
        return latents.reshape(1, -1, frames, rows * patch, columns * patch)


def _fuse(attention: MochiAttention, *names: str) -> nn.Linear:
    """Replace the named layers, for queries and keys, by one with the outputs of all.

    The channels are in the order of `pairs_to_halves`.
    """
    head_dim = len(attention.norm_q.weight)
    weights = [pairs_to_halves(getattr(attention, name).weight.data, head_dim) for name in names]
    for name in names:
        delattr(attention, name)
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    layer.out_features, layer.in_features = layer.weight.shape
    return layer
