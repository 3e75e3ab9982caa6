from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from torch import Tensor, nn

from models.errors import EngineUnavailableError
from models.mochi.network.fp8 import Float8Linear, check, quantize
from models.mochi.network.transformer import Block

needs_products = pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm_v2", "CPU"),
    reason="this torch multiplies 8-bit floats on GPUs alone",
)


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)


def linear(in_features: int, out_features: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features, bias=bias, dtype=torch.bfloat16)


def exact(layer: nn.Linear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.linear(x.double(), layer.weight.double(), bias).detach()


def error(value: Tensor, expected: Tensor) -> float:
    """Root mean square, relative to that of what is expected."""
    return float((value.detach().double() - expected).norm() / expected.norm())


# The product


@needs_products
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_four_per_cent_off(bias: bool) -> None:
    layer, x = linear(3072, 3072, bias=bias), bf16(64, 3072)
    expected = exact(layer, x)
    assert error(layer(x), expected) < 0.003
    assert 0.02 < error(Float8Linear(layer)(x), expected) < 0.04


@needs_products
def test_a_bias_is_added_as_it_is() -> None:
    layer = linear(32, 48, bias=True)
    torch.testing.assert_close(
        Float8Linear(layer)(torch.zeros(2, 32, dtype=torch.bfloat16)), layer.bias.expand(2, 48)
    )


@needs_products
@pytest.mark.parametrize("shape", [(7,), (1, 5), (2, 3, 4), (0,), (1, 0)])
def test_all_dimensions_but_the_last_stay(shape: tuple[int, ...]) -> None:
    result = Float8Linear(linear(32, 48))(bf16(*shape, 32))
    assert result.shape == (*shape, 48)
    assert result.dtype == torch.bfloat16


@needs_products
def test_rows_do_not_share_a_scale() -> None:
    layer, x = linear(256, 256), bf16(4, 256)
    layer.weight.data[7] *= 1e4
    x[0] *= 1e4
    x[1] *= 1e-4
    x[2] = 0
    expected, result = exact(layer, x), Float8Linear(layer)(x)
    for row in (0, 1, 3):
        for column in (slice(0, 7), slice(8, None)):
            assert error(result[row, column], expected[row, column]) < 0.06
    assert not result[2].any()


def test_it_takes_half_the_memory() -> None:
    layer = linear(3072, 3072)
    quantised = sum(p.nbytes for p in Float8Linear(layer).parameters())
    assert quantised < 0.51 * layer.weight.nbytes


@needs_products
def test_copying_the_parameters_copies_the_layer() -> None:
    # As with blocks that visit the GPU in turn.
    layer, x = linear(256, 256), bf16(4, 256)
    slot = copy.deepcopy(Float8Linear(layer))
    layer.weight.data *= -3
    tripled = Float8Linear(layer)
    for to, source in zip(slot.parameters(), tripled.parameters(), strict=True):
        to.data.copy_(source.data, non_blocking=True)
    assert torch.equal(slot(x), tripled(x))


@needs_products
def test_it_is_compiled_in_one_piece() -> None:
    layer, x = Float8Linear(linear(64, 32)), bf16(3, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


# Which layers


@needs_products
def test_big_layers_are_replaced_wherever_they_are() -> None:
    big = linear(2048, 2064)
    nested = nn.Sequential(nn.SiLU(), linear(2064, 2048))
    model = nn.Sequential(big, nested)
    x = bf16(2, 2048)
    expected = exact(big, x)
    quantize(model)
    assert error(model[0](x), expected) < 0.04
    assert [type(module) for module in nested] == [nn.SiLU, Float8Linear]


@pytest.mark.parametrize(
    "layer",
    [
        linear(2032, 2048),
        linear(2048, 2032),
        linear(2056, 2048),
        linear(2048, 2056),
        nn.LayerNorm(2048),
        nn.Conv2d(2048, 2048, 1, device="meta"),
    ],
    ids=str,
)
def test_other_layers_stay(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    quantize(model)
    assert model[0] is layer


def test_of_a_block_of_mochi_the_visual_layers_are_taken() -> None:
    with torch.device("meta"):
        stock = MochiTransformerBlock(
            dim=3072, num_attention_heads=24, attention_head_dim=128, pooled_projection_dim=1536
        )
        block = Block(stock.to(torch.bfloat16))
        quantize(block)
    taken = {name for name, module in block.named_modules() if isinstance(module, Float8Linear)}
    assert taken == {"to_qk", "to_v", "to_out", "ff.net.0.proj", "ff.net.2"}


# Which devices


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], torch_: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card at {device}")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(torch_))


@pytest.mark.parametrize(
    ("capability", "torch_"),
    [((8, 9), "2.12.0+cu130"), ((8, 9), "2.13.0"), ((9, 0), "2.11.0"), ((12, 0), "2.11.0")],
)
def test_cards_from_ada_on_will_do(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], torch_: str
) -> None:
    pretend(monkeypatch, capability, torch_)
    check("cuda")


@pytest.mark.parametrize("capability", [(8, 6), (8, 0), (7, 5)])
def test_an_older_card_is_named_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    pretend(monkeypatch, capability, "2.13.0")
    with pytest.raises(EngineUnavailableError, match=r"8\.9 or later") as caught:
        check("cuda:1")
    major, minor = capability
    assert f"Card at cuda:1 has {major}.{minor}. Leave MOCHI_FP8 out" in str(caught.value)


def test_a_torch_that_can_hang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (8, 9), "2.11.0+cu130")
    with pytest.raises(EngineUnavailableError, match=r"pip install 'torch>=2\.12'"):
        check("cuda")


def test_without_a_gpu_there_is_a_message_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailableError, match="no CUDA device here"):
        check("cuda")
