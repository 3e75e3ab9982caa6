"""The layouts in which trainers and other programs write a LoRA: all are the same LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.mochi.loading.lora import Lora, fuse
from tests.support.models.tiny_lora import QUERY, assert_changed, products, random_halves, tiny

LAYOUTS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft's own state": (
        "base_model.model.{}.lora_A.default.weight",
        "base_model.model.{}.lora_B.default.weight",
    ),
    "peft over a pipeline": (
        "base_model.model.transformer.{}.lora_A.weight",
        "base_model.model.transformer.{}.lora_B.weight",
    ),
    "ComfyUI": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight"),
    "ComfyUI, of kohya's trainer": (
        "diffusion_model.{}.lora_down.weight",
        "diffusion_model.{}.lora_up.weight",
    ),
}
"""The names of the two halves of a layer."""


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_lora_is_the_same_in_every_layout(
    write: Callable[..., Path], names: tuple[str, str]
) -> None:
    halves = random_halves()
    tensors = {
        name.format(layer): half
        for layer, pair in halves.items()
        for name, half in zip(names, pair, strict=True)
    }
    model = tiny()
    fuse(model, [Lora(write(tensors))])
    assert_changed(model, products(halves, 1.0))


def test_genmos_names_below_the_prefix_of_comfyui_are_understood(
    write: Callable[..., Path],
) -> None:
    halves = random_halves([QUERY])
    down, up = halves[QUERY]
    stacked = up.new_zeros(3 * len(up), up.shape[1])  # queries, keys and values
    stacked[: len(up)] = up
    prefix = "diffusion_model.blocks.0.attn.qkv_x"
    model = tiny()
    fuse(
        model,
        [Lora(write({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": stacked}))],
    )
    assert_changed(model, products(halves, 1.0))
