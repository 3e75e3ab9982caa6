"""LoRAs as the setting names them, and what they add to the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import EngineUnavailableError
from models.mochi.loading.lora import Lora, fuse, parse
from tests.support.models.tiny_lora import (
    DOWN,
    OUT,
    PATCHES,
    QUERY,
    assert_changed,
    in_diffusers_format,
    in_down_up_format,
    products,
    random_halves,
    tiny,
)

# The setting


@pytest.mark.parametrize("text", ["", "  "])
def test_no_setting_is_no_lora(text: str) -> None:
    assert parse(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", [Lora(Path("a.safetensors"), 1.0)]),
        ("/x/a.safetensors=0.8", [Lora(Path("/x/a.safetensors"), 0.8)]),
        ("a.safetensors=-1", [Lora(Path("a.safetensors"), -1.0)]),
        ("a.safetensors=0", [Lora(Path("a.safetensors"), 0.0)]),
        ("a b.safetensors = 1e-3", [Lora(Path("a b.safetensors"), 0.001)]),
        (
            "a.safetensors=0.5, b=c.safetensors",
            [Lora(Path("a.safetensors"), 0.5), Lora(Path("b=c.safetensors"), 1.0)],
        ),
    ],
)
def test_a_setting_names_files_and_scales(text: str, expected: list[Lora]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "item",
    [
        "a.bin",
        "a.safetensors=",
        "a.safetensors=much",
        "a.safetensors=nan",
        "a.safetensors=inf",
        "a.safetensors=b.safetensors",
        ".safetensors",
        "=1",
    ],
)
def test_anything_else_is_quoted_with_what_to_type(item: str) -> None:
    with pytest.raises(EngineUnavailableError, match=r"Type FILE\.safetensors or") as caught:
        parse(f"good.safetensors=1,{item}")
    assert repr(item) in str(caught.value)


def test_a_comma_too_many_is_not_passed_over() -> None:
    with pytest.raises(EngineUnavailableError, match="MOCHI_LORA contains ''"):
        parse("a.safetensors,")


# What is added


@pytest.mark.parametrize("scale", [1.0, 0.8, 0.0, -2.0])
def test_scale_times_b_times_a_is_added(write: Callable[..., Path], scale: float) -> None:
    halves, model = random_halves(), tiny()
    fuse(model, [Lora(write(in_diffusers_format(halves)), scale)])
    assert_changed(model, products(halves, scale))


def test_the_prefix_may_be_missing(write: Callable[..., Path]) -> None:
    halves, model = random_halves(), tiny()
    fuse(model, [Lora(write(in_diffusers_format(halves, prefix="")))])
    assert_changed(model, products(halves, 1.0))


def test_down_and_up_are_a_and_b(write: Callable[..., Path]) -> None:
    halves, model = random_halves(), tiny()
    fuse(model, [Lora(write(in_down_up_format(halves)), 0.5)])
    assert_changed(model, products(halves, 0.5))


def test_alpha_over_rank_is_a_factor(write: Callable[..., Path]) -> None:
    halves, model = random_halves(rank=4), tiny()
    alphas = {f"{layer}.alpha": torch.tensor(2.0) for layer in halves}
    fuse(model, [Lora(write({**in_down_up_format(halves), **alphas}), 3.0)])
    assert_changed(model, products(halves, 3.0 * 2 / 4))


def test_the_alpha_that_peft_wrote_down_counts(write: Callable[..., Path]) -> None:
    halves, model = random_halves(rank=4), tiny()
    settings = {
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"attn1.to_q": 1, "to_q": 99, "to_out.0": 6},
    }
    fuse(model, [Lora(write(in_diffusers_format(halves), lora_adapter_metadata=settings))])
    factors = {QUERY: 1 / 4, OUT: 6 / 4, DOWN: 8 / 4}
    expected = products(halves, 1.0)
    assert_changed(model, {layer: factors[layer] * expected[layer] for layer in halves})


def test_rank_stabilised_loras_divide_alpha_by_the_root(write: Callable[..., Path]) -> None:
    halves, model = random_halves(rank=4), tiny()
    settings = {"transformer.lora_alpha": 8, "transformer.use_rslora": True}
    fuse(model, [Lora(write(in_diffusers_format(halves), lora_adapter_metadata=settings))])
    assert_changed(model, products(halves, 8 / 2))


def test_a_convolution_has_its_kernel_in_a(write: Callable[..., Path]) -> None:
    halves, model = random_halves([PATCHES]), tiny()
    tensors = in_diffusers_format(
        {PATCHES: (halves[PATCHES][0], halves[PATCHES][1][..., None, None])}
    )
    fuse(model, [Lora(write(tensors))])
    assert_changed(model, products(halves, 1.0))


def test_genmos_names_are_understood(write: Callable[..., Path]) -> None:
    visual, text, rank = 32, 16, 4
    sizes = {
        "blocks.0.attn.qkv_x": (visual, 3 * visual),
        "blocks.0.attn.qkv_y": (text, 3 * visual),
        "blocks.0.attn.proj_x": (visual, visual),
        "blocks.0.attn.proj_y": (visual, text),
    }
    genmo = {name: (torch.randn(rank, i), torch.randn(o, rank)) for name, (i, o) in sizes.items()}
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in genmo.items():
        tensors |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
    settings = {"qkv_proj_lora_alpha": 8, "out_proj_lora_alpha": 2}
    model = tiny()
    fuse(model, [Lora(write(tensors, kwargs=settings))])

    full = products(genmo, 1.0)
    names = {"qkv_x": ("to_q", "to_k", "to_v"), "qkv_y": ("add_q_proj", "add_k_proj", "add_v_proj")}
    expected = {}
    for fused, parts in names.items():
        for part, product in zip(parts, full[f"blocks.0.attn.{fused}"].chunk(3), strict=True):
            expected[f"transformer_blocks.0.attn1.{part}"] = 8 / rank * product
    expected["transformer_blocks.0.attn1.to_out.0"] = 2 / rank * full["blocks.0.attn.proj_x"]
    expected["transformer_blocks.0.attn1.to_add_out"] = 2 / rank * full["blocks.0.attn.proj_y"]
    assert_changed(model, expected)


def test_several_loras_add_up_in_any_order(write: Callable[..., Path]) -> None:
    halves = [random_halves(rank=rank) for rank in (2, 4, 8)]
    loras = [
        Lora(write(in_diffusers_format(each), name=str(index)), scale)
        for index, (each, scale) in enumerate(zip(halves, (1.0, 0.5, -0.25), strict=True))
    ]
    each_product = [products(each, lora.scale) for each, lora in zip(halves, loras, strict=True)]
    total = {layer: sum(product[layer] for product in each_product) for layer in halves[0]}
    for order in (loras, loras[::-1]):
        model = tiny()
        fuse(model, order)
        assert_changed(model, {layer: torch.as_tensor(product) for layer, product in total.items()})


def test_bfloat16_weights_are_rounded_once(write: Callable[..., Path]) -> None:
    halves = [random_halves([QUERY]) for _ in range(8)]
    loras = [
        Lora(write(in_diffusers_format(each), name=str(index)), 0.1)
        for index, each in enumerate(halves)
    ]
    model = tiny(torch.bfloat16)
    exact = model.get_parameter(f"{QUERY}.weight").detach().double()
    for each in halves:
        exact = exact + products(each, 0.1)[QUERY]
    fuse(model, loras)
    fused = model.get_parameter(f"{QUERY}.weight").detach()
    assert fused.dtype == torch.bfloat16
    assert ((fused.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_the_transformer_computes_what_it_would_with_the_lora_beside_it(
    write: Callable[..., Path],
) -> None:
    halves = random_halves()

    def output(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            result: Tensor = model(
                hidden_states=torch.randn(1, 12, 2, 4, 4),
                encoder_hidden_states=torch.randn(1, 8, 32),
                timestep=torch.tensor([500.0]),
                encoder_attention_mask=torch.ones(1, 8, dtype=torch.bool),
                return_dict=False,
            )[0]
        return result

    beside = tiny()
    for layer, (down, up) in halves.items():
        beside.get_submodule(layer).register_forward_hook(
            lambda _, inputs, out, down=down, up=up: out + 0.3 * inputs[0] @ down.T @ up.T
        )
    fused = tiny()
    fuse(fused, [Lora(write(in_diffusers_format(halves)), 0.3)])
    torch.testing.assert_close(output(fused), output(beside), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output(fused), output(tiny()), atol=1e-2)


def test_the_transformer_stays_a_stock_one(write: Callable[..., Path]) -> None:
    model = tiny()
    fuse(model, [Lora(write(in_diffusers_format(random_halves())))])
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in tiny().named_modules()
    ]
    assert model.state_dict().keys() == tiny().state_dict().keys()
