"""LoRAs beside the weights compute what the fused weights compute, and can be switched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor

from models.mochi.network import fp8
from models.mochi.network.adapters import (
    MULTIPLE,
    PLACES,
    Adapted,
    Adapters,
    NamedLora,
    buffer_bytes,
    ranks_of,
)
from models.mochi.network.modulation import Conditioner
from models.mochi.network.transformer import Core
from models.request.loras import MOST_AT_ONCE
from tests.support.models.tiny_lora import named_lora
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    error,
    make_stock,
    noise,
    our_conditions,
    our_loop,
    take_over,
)
from tests.unit.models.mochi.network.test_fp8 import needs_products

BLOCKS = 3
MOST_ERROR = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
"""Of a whole loop's latents. In bfloat16 each weight is rounded when it is fused, and each product
of an adapter."""


def all_layers(stock: MochiTransformer3DModel, block: int | None = None) -> list[str]:
    """Those that may have adapters."""
    numbers = range(len(stock.transformer_blocks)) if block is None else [block]
    names = (f"transformer_blocks.{number}.{name}" for number in numbers for name in PLACES)
    there = {name.removesuffix(".weight") for name, _ in stock.named_parameters()}
    return [name for name in names if name in there]


def fused(
    stock: MochiTransformer3DModel, *added: tuple[NamedLora, float]
) -> tuple[Conditioner, Core]:
    """The transformer with the LoRAs in its weights."""
    for lora, scale in added:
        for change in lora.changes:
            weight = stock.get_parameter(f"{change.layer}.weight")
            exact = weight.data.float().contiguous()
            replace(change, factor=change.factor * scale).add_to(exact)
            weight.data = exact.to(weight.dtype)
    return take_over(stock)


def adapted(
    stock: MochiTransformer3DModel, loras: Mapping[str, NamedLora], *, streamed: int = 0
) -> tuple[Core, Adapters]:
    core = Core(stock)
    adapters = Adapters(core, loras)
    core.place(CPU, streamed=streamed)
    return core, adapters


def latents(conditioner: Conditioner, core: Core, dtype: torch.dtype = torch.float32) -> Tensor:
    """After a whole request, with a text in each branch."""
    conditions = our_conditions(conditioner, embeddings(3, 20, dtype=dtype), 10)
    return our_loop(core, conditions, noise())


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("block", [0, BLOCKS - 1])
def test_each_layer_is_as_if_fused(name: str, block: int) -> None:
    layers = [layer for layer in all_layers(make_stock(BLOCKS), block) if layer.endswith(name)]
    if not layers:
        assert block == BLOCKS - 1  # it does not update the text
        return
    lora = named_lora(make_stock(BLOCKS), layers)
    conditioner, expected = fused(make_stock(BLOCKS), (lora, 0.8))
    core, adapters = adapted(make_stock(BLOCKS), {"style": lora})
    adapters.use({"style": 0.8})
    conditions = our_conditions(conditioner, embeddings(3, 20), 10)
    found = core(noise(), conditions, 5)[1]
    assert error(found, expected(noise(), conditions, 5)[1]) < 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("streamed", [0, BLOCKS - 1])
def test_a_choice_of_several_is_as_if_fused_and_none_is_as_if_never_there(
    dtype: torch.dtype, streamed: int
) -> None:
    stock = make_stock(BLOCKS, dtype)
    conditioner, plain = take_over(make_stock(BLOCKS, dtype))
    without = latents(conditioner, plain, dtype)
    layers = all_layers(stock)
    loras = {
        "all": named_lora(stock, layers, rank=4, seed=1),
        "some": named_lora(stock, layers[::3], rank=3, seed=2),
        "other": named_lora(stock, layers[1::2], rank=16, seed=3),
    }
    core, adapters = adapted(stock, loras, streamed=streamed)

    def check(scales: dict[str, float]) -> None:
        adapters.use(scales)
        added = [(loras[name], scale) for name, scale in scales.items()]
        expected = latents(*fused(make_stock(BLOCKS, dtype), *added), dtype)
        found = latents(conditioner, core, dtype)
        assert error(found, expected) < MOST_ERROR[dtype]
        assert error(found, without) > 0.05

    assert torch.equal(latents(conditioner, core, dtype), without)
    check({"all": 1.0})
    check({"some": 0.5, "all": 0.7, "other": -0.4})
    adapters.use({})
    assert torch.equal(latents(conditioner, core, dtype), without)
    check({"other": 1.0})  # nothing is left of the others
    check({"other": 0.5})


@needs_products
def test_adapters_stand_beside_products_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "NARROWEST", 64)

    def quantized(stock: MochiTransformer3DModel) -> tuple[Core, Adapters]:
        core = Core(stock)
        adapters = Adapters(core, {"style": lora})
        fp8.quantize(core.blocks)
        core.place(CPU)
        return core, adapters

    dtype = torch.bfloat16
    lora = named_lora(make_stock(BLOCKS), all_layers(make_stock(BLOCKS)), seed=1)
    core, adapters = quantized(make_stock(BLOCKS, dtype))
    assert any(isinstance(module, fp8.Float8Linear) for module in core.modules())
    conditioner, exact = fused(make_stock(BLOCKS, dtype), (lora, 1.0))
    without = latents(conditioner, core, dtype)
    adapters.use({"style": 1.0})
    found = latents(conditioner, core, dtype)
    expected = latents(conditioner, exact, dtype)
    # What eight bits take is much less than what the LoRA brings.
    assert error(found, expected) < error(without, expected) / 4


def test_a_choice_that_was_not_filled_to_the_end_is_filled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = make_stock(BLOCKS)
    layers = all_layers(stock)
    loras = {name: named_lora(stock, layers, seed=seed) for seed, name in enumerate("ab")}
    conditioner, _ = take_over(make_stock(BLOCKS))
    core, adapters = adapted(stock, loras)
    adapters.use({"a": 1.0})
    expected = latents(conditioner, core)
    monkeypatch.setitem(adapters._changes, "c", [*adapters._changes["b"][:3], "not a change"])
    with pytest.raises(AttributeError):
        adapters.use({"c": 1.0})
    adapters.use({"a": 1.0})
    assert torch.equal(latents(conditioner, core), expected)


# Memory


def test_ranks_suffice_for_the_largest_choice() -> None:
    stock = make_stock(BLOCKS)
    layer = "transformer_blocks.1.attn1.to_k"
    loras = [named_lora(stock, [layer], rank=rank) for rank in (1, 2, 3, 30, 4, 5)]
    most = sum(sorted(rank for rank in (1, 2, 3, 30, 4, 5))[-MOST_AT_ONCE:])
    (path, (queries, keys)), *others = ranks_of(loras).items()
    assert (path, queries, others) == ("to_qk", 0, [])
    assert most <= keys < most + MULTIPLE
    assert keys % MULTIPLE == 0


def test_only_changed_layers_have_adapters_in_every_block() -> None:
    stock = make_stock(BLOCKS)
    core, _ = adapted(stock, {"a": named_lora(stock, ["transformer_blocks.1.ff.net.2"])})
    found = [name for name, module in core.blocks.named_modules() if isinstance(module, Adapted)]
    assert found == [f"{number}.ff.net.2" for number in range(BLOCKS)]
    core, _ = adapted(make_stock(BLOCKS), {})
    assert not any(isinstance(module, Adapted) for module in core.modules())


def test_the_memory_of_the_buffers_is_known_before_they_are_made() -> None:
    stock = make_stock(BLOCKS, torch.bfloat16)
    loras = {
        "a": named_lora(stock, all_layers(stock), rank=5),
        "b": named_lora(stock, all_layers(stock, 1), rank=20),
    }
    core, _ = adapted(stock, loras)
    sizes = [buffer.nbytes for buffer in core.blocks[0].buffers()]
    assert buffer_bytes(loras.values()) == sum(sizes) > 0


def test_an_identity_has_the_numbers_and_not_the_names() -> None:
    stock = make_stock(BLOCKS)
    one, two = (named_lora(stock, all_layers(stock, 0), seed=seed) for seed in range(2))
    _, adapters = adapted(stock, {"a": one, "b": two})
    _, renamed = adapted(make_stock(BLOCKS), {"x": one, "a": two})
    assert adapters.identity({"a": 1.0}) == renamed.identity({"x": 1.0})
    choices: list[dict[str, float]] = [{"a": 1.0}, {"a": 0.5}, {"b": 1.0}, {"a": 1.0, "b": 1.0}, {}]
    assert len({adapters.identity(choice) for choice in choices}) == len(choices)
