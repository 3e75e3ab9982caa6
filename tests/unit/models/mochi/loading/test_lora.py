from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import EngineUnavailableError
from models.mochi.loading.lora import Lora, fuse, parse

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


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        tensors: Mapping[str, Tensor], name: str = "style", **metadata: Mapping[str, Any]
    ) -> Path:
        path = tmp_path / f"{name}.safetensors"
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=texts
        )
        return path

    return write


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


# What is refused


A, B = f"transformer.{QUERY}.lora_A.weight", f"transformer.{QUERY}.lora_B.weight"


def with_other(key: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**in_diffusers_format(random_halves()), key: tensor}


def without(key: str) -> dict[str, Tensor]:
    tensors = in_diffusers_format(random_halves())
    del tensors[key]
    return tensors


def of_layer(layer: str) -> dict[str, Tensor]:
    return in_diffusers_format({layer: random_halves()[QUERY]})


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (of_layer("transformer_blocks.7.attn1.to_q"), "blocks.7.attn1.to_q is not in Mochi's"),
        (of_layer("model.blocks.0.attn.qkv_x"), "model.blocks.0.attn.qkv_x is not in Mochi's"),
        (of_layer("blocks.0.attn.qkv_z"), "blocks.0.attn.qkv_z is not in Mochi's transformer"),
        (of_layer("time_embed"), "layer time_embed is not in Mochi's transformer"),
        (with_other(A, torch.ones(4, 31)), f"{QUERY} (down (4, 31), up (32, 4)) does not fit"),
        (with_other(B, torch.ones(31, 4)), f"{QUERY} (down (4, 32), up (31, 4)) does not fit"),
        (with_other(A, torch.ones(3, 32)), f"{QUERY} (down (3, 32), up (32, 4)) does not fit"),
        (with_other(A, torch.ones(4, 32, 1)), f"{QUERY} (down (4, 32, 1), up (32, 4)) does not"),
        (with_other(A, torch.ones(0, 32)), f"{A} has the shape (0, 32)"),
        (with_other(A, torch.ones(())), f"{A} has the shape ()"),
        (with_other(f"{QUERY}.alpha", torch.ones(2)), f"{QUERY}.alpha has the shape (2,)"),
        (without(A), f"layer {QUERY} lacks a half"),
        (without(B), f"layer {QUERY} lacks a half"),
        (with_other(f"{QUERY}.lora_down.weight", torch.ones(4, 32)), "repeats another key"),
        (with_other(f"{QUERY}.lora_B.bias", torch.ones(32)), "lora_B.bias is not part of a LoRA"),
        (
            with_other(f"{QUERY}.lora_magnitude_vector", torch.ones(32)),
            "lora_magnitude_vector is not part of a LoRA",
        ),
        (
            with_other("text_encoder.wo.lora_A.weight", torch.ones(4, 32)),
            "text_encoder.wo.lora_A.weight is for the text encoder",
        ),
        (
            with_other("lora_te1_wo.lora_down.weight", torch.ones(4, 32)),
            "lora_te1_wo.lora_down.weight is for the text encoder",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    write: Callable[..., Path], tensors: Mapping[str, Tensor], named: str
) -> None:
    path = write(tensors)
    with pytest.raises(EngineUnavailableError) as caught:
        fuse(tiny(), [Lora(path)])
    message = str(caught.value)
    assert message.startswith(f"The LoRA {path} cannot be used: ")
    assert named in message
    assert "Remove it from MOCHI_LORA" in message


def test_a_refused_file_changes_nothing_and_stops_the_others_too(
    write: Callable[..., Path],
) -> None:
    good = write(in_diffusers_format(random_halves()), name="good")
    bad = write(without(B), name="bad")
    model = tiny()
    with pytest.raises(EngineUnavailableError, match="bad"):
        fuse(model, [Lora(good), Lora(bad)])
    assert_changed(model, {})


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02a pickle", b"\xff" * 100])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "style.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineUnavailableError, match="cannot be read") as caught:
        fuse(tiny(), [Lora(path)])
    assert str(path) in str(caught.value)
    assert "Check the path in MOCHI_LORA" in str(caught.value)


def test_a_download_that_broke_off_is_named(write: Callable[..., Path]) -> None:
    path = write(in_diffusers_format(random_halves()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        fuse(tiny(), [Lora(path)])


def test_a_file_without_weights_is_not_passed_over(write: Callable[..., Path]) -> None:
    path = write({}, kwargs={})
    with pytest.raises(EngineUnavailableError, match="it is empty"):
        fuse(tiny(), [Lora(path)])


def test_settings_that_are_no_json_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(in_diffusers_format(random_halves()), path, metadata={"kwargs": "r=4"})
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        fuse(tiny(), [Lora(path)])
