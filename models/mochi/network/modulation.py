"""The modulation (AdaLN), computed for all steps before the first.

The factors that scale each norm of each block depend on the time step and the pooled prompt alone.
Their tables take a few hundred megabytes at most. The 2.7 billion parameters that compute them are
used once a request, so they need not stay on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.memory.streaming import pin, visit

Tables = tuple[Tensor, Tensor]
"""Factors of one block: float32 `(steps, 4, width)` for the visual norms, `(steps, 4, text_width)`
for the text's. The four stand before and after attention, and before and after the feed-forward
network. The last block only attends to the text, which there has the first factor alone."""


@dataclass(frozen=True)
class Condition:
    """The inputs of the transformer for one branch of guidance.

    No tensor is a view of another, as blocks would be compiled anew for each offset.

    Attributes:
        text: `(1, L, text_width)`, of the transformer's dtype.
        blocks: the tables of each block.
        output: float32 `(steps, 2, width)`: factor and shift before the output layer.
    """

    text: Tensor
    blocks: list[Tables]
    output: Tensor


class Conditioner(nn.Module):
    """Computes conditions from text embeddings and time steps.

    Its big layers may stay in main memory, and visit the device when they are needed.
    """

    def __init__(self, stock: MochiTransformer3DModel) -> None:
        """Take over the layers of `stock` that depend on the step or the text alone."""
        super().__init__()
        self.embed = stock.time_embed
        blocks = list(stock.transformer_blocks)
        self.visual_layers = nn.ModuleList(block.norm1.linear for block in blocks)
        self.text_layers = nn.ModuleList(map(_text_layer, blocks))
        self.output_layer = stock.norm_out.linear

    def place(self, device: torch.device, *, big_layers_too: bool = True) -> None:
        """Move to `device`, the big layers too or pinned in main memory."""
        self.embed.to(device)
        for module in (self.visual_layers, self.text_layers, self.output_layer):
            if big_layers_too:
                module.to(device)
            else:
                pin(module)

    def forward(self, prompts: Sequence[Tensor], timesteps: Tensor) -> list[Condition]:
        """Compute a condition for each prompt.

        Args:
            prompts: text embeddings, each `(L, 4096)`, L from 0 up.
            timesteps: `(steps,)`, 0 to 1000. A low-precision dtype rounds them, as in diffusers
                when its latents are bfloat16.
        """
        weight = self.embed.caption_proj.weight
        prompts = [prompt.to(weight.device, weight.dtype)[None] for prompt in prompts]
        moments = self.embed.timestep_embedder(
            self.embed.time_proj(timesteps.to(weight.device)).to(weight.dtype)
        )
        inputs = [functional.silu(moments + self._pooled(prompt)) for prompt in prompts]
        blocks: list[list[Tables]] = [[] for _ in prompts]
        for visual, text in zip(self.visual_layers, self.text_layers, strict=True):
            with visit(visual, weight.device), visit(text, weight.device):
                for tables, rows in zip(blocks, inputs, strict=True):
                    tables.append(
                        (
                            _factors(visual(rows), rows.shape[1]),
                            _factors(text(rows), self.embed.caption_proj.out_features),
                        )
                    )
        with visit(self.output_layer, weight.device):
            outputs = [self._output(rows) for rows in inputs]
        return [
            Condition(self.embed.caption_proj(prompt).clone(), tables, output)
            for prompt, tables, output in zip(prompts, blocks, outputs, strict=True)
        ]

    def _pooled(self, prompt: Tensor) -> Tensor:
        """`(1, L, 4096)` to `(1, width)`."""
        everything = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
        pooled: Tensor = self.embed.pooler(prompt, everything)
        return pooled

    def _output(self, inputs: Tensor) -> Tensor:
        scale, shift = self.output_layer(inputs).float().chunk(2, dim=1)
        return torch.stack((1 + scale, shift), dim=1)


def _text_layer(block: MochiTransformerBlock) -> nn.Module:
    norm = block.norm1_context
    layer: nn.Module = norm.linear_1 if block.context_pre_only else norm.linear
    return layer


def _factors(outputs: Tensor, width: int) -> Tensor:
    """Outputs of a modulation layer, `(steps, k * width)`, to a table, `(steps, k, width)`.

    The outputs are a scale and a gate for attention, then for the feed-forward network; for the
    last block's text, a scale only.
    """
    outputs = outputs.view(len(outputs), -1, width)
    factors = 1 + outputs.float()
    factors[:, 1::2] = outputs[:, 1::2].tanh().float()
    return factors
