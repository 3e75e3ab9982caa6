"""Small LoRAs of random numbers, and a transformer to fuse them into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn

from models.mochi.network.adapters import LowRank, NamedLora

QUERY = "transformer_blocks.0.attn1.to_q"
OUT = "transformer_blocks.1.attn1.to_out.0"
DOWN = "transformer_blocks.1.ff.net.2"
PATCHES = "patch_embed.proj"

Halves = Mapping[str, tuple[Tensor, Tensor]]
"""Of each layer: what is called lora_A, then what is called lora_B."""


def tiny(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=32,
        time_embed_dim=16,
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def random_halves(layers: Sequence[str] = (QUERY, OUT, DOWN), rank: int = 4) -> Halves:
    shapes = {name: weight.shape for name, weight in tiny().named_parameters()}
    return {
        layer: (torch.randn(rank, *shapes[f"{layer}.weight"][1:]), torch.randn(out, rank))
        for layer, out in ((layer, shapes[f"{layer}.weight"][0]) for layer in layers)
    }


def in_diffusers_format(halves: Halves, prefix: str = "transformer.") -> dict[str, Tensor]:
    tensors = {}
    for layer, (down, up) in halves.items():
        tensors[f"{prefix}{layer}.lora_A.weight"] = down
        tensors[f"{prefix}{layer}.lora_B.weight"] = up
    return tensors


def in_down_up_format(halves: Halves) -> dict[str, Tensor]:
    tensors = {}
    for layer, (down, up) in halves.items():
        tensors[f"{layer}.lora_down.weight"] = down
        tensors[f"{layer}.lora_up.weight"] = up
    return tensors


def assert_changed(model: nn.Module, products: Mapping[str, Tensor]) -> None:
    """Each layer of `products` has that much more weight than at first, and no other differs."""
    for name, before in tiny().named_parameters():
        expected = before.detach().double()
        product = products.get(name.removesuffix(".weight"))
        if product is not None:
            expected = expected + product.view_as(before)
        after = model.get_parameter(name).detach().double()
        torch.testing.assert_close(
            after, expected, rtol=1e-6, atol=1e-6 if product is not None else 0
        )


def products(halves: Halves, factor: float) -> dict[str, Tensor]:
    """What to add to each layer, by the definition and in float64."""
    return {
        layer: factor * up.double() @ down.double().flatten(1)
        for layer, (down, up) in halves.items()
    }


def named_lora(
    transformer: nn.Module, layers: Sequence[str], rank: int = 4, seed: int = 0
) -> NamedLora:
    """A LoRA of random numbers for layers of `transformer`, as large as its weights."""
    generator = torch.Generator().manual_seed(seed)

    def half(*shape: int) -> Tensor:
        values: Tensor = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        return values

    shapes = {layer: transformer.get_parameter(f"{layer}.weight").shape for layer in layers}
    changes = [
        LowRank(layer, half(rank, width), half(out, rank), 0.5)
        for layer, (out, width) in shapes.items()
    ]
    return NamedLora(f"digest {rank} {seed}", tuple(changes))
