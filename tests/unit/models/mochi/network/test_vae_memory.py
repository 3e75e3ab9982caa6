"""What the decoder copies, its memory layout, and its memory at full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.mochi.network import vae
from models.mochi.network.ranks import GroupRanks
from models.mochi.network.vae import Decoder
from tests.support.models.tiny_vae import make_decoder, make_latents, make_vae

FULL_SIZE = (60, 106)
"""Height and width of the latents of 848x480."""


# Layout and copies


def test_everything_stays_channels_last() -> None:
    # So large that convolutions on a CPU keep the layout as those of a GPU do; the first is too
    # narrow for that.
    decoder = make_decoder(
        make_vae(torch.float32, decoder_block_out_channels=(32, 32, 32, 128)), chunk=2
    )
    decoder._decoder.conv_in.register_forward_hook(
        lambda *call: call[2].contiguous(memory_format=torch.channels_last_3d)
    )
    seen: dict[str, bool] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            tensors = [inputs[0], output[0] if isinstance(output, tuple) else output]
            seen[name] = seen.get(name, True) and all(map(is_channels_last, tensors))

        return hook

    for name, module in decoder._decoder.named_modules():
        if isinstance(module, vae._Conv | vae._Norm | vae._UpBlock | nn.SiLU):
            module.register_forward_hook(look(name))
    assert len(list(decoder.decode(make_latents(4, height=40, width=2)))) == 2
    assert len(seen) == 10 + 10 + 3 + 1
    assert [name for name, kept in seen.items() if not kept] == []


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last_3d)


def test_weights_of_convolutions_are_channels_last(single: AutoencoderKLMochi) -> None:
    weights = [
        weight for weight in make_decoder(single, 1)._decoder.parameters() if weight.dim() == 5
    ]
    assert len(weights) == 11
    assert all(map(is_channels_last, weights))


weak: Callable[[UntypedStorage], Any] = reductions.StorageWeakRef


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that run, and the most bytes at once in tensors that they made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.peak: int = 0
        self._live: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators.append(str(func.overloadpacket))
        for tensor in tree_leaves(output):
            storage = tensor.untyped_storage()
            self._live.setdefault(storage._cdata, (weak(storage), storage.nbytes()))
        self._live = {
            key: (storage, size)
            for key, (storage, size) in self._live.items()
            if not storage.expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output


def test_a_norm_in_float32_holds_one_frame_of_bfloat16_at_a_time() -> None:
    norm = make_decoder(make_vae(torch.bfloat16), 1)._decoder.block_out.resnets[0].norm1
    inputs = torch.randn(1, 32, 16, 8, 8, dtype=torch.bfloat16)
    inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
    with Watch() as watch:
        norm(inputs)
    # The inputs, the result, and one frame in float32: before, between and after.
    assert watch.peak < 2 * inputs.nbytes + 4 * 4 * inputs[:, :, 0].numel()


def test_pixels_are_made_of_channels_in_one_copy(single: AutoencoderKLMochi) -> None:
    block = make_decoder(single, 1)._decoder.up_blocks[0]
    block.resnets = nn.ModuleList()
    inputs = torch.randn(1, 32, 2, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    with Watch() as watch:
        block(inputs)
    assert watch.operators == ["aten.addmm", "aten.clone", "aten._unsafe_view"]


# Full size, on tensors without numbers


def full_size(dtype: torch.dtype, chunk: int) -> Decoder:
    with torch.device("meta"):
        empty = AutoencoderKLMochi(encoder_block_out_channels=(32, 32, 32, 32))
    return Decoder(empty.requires_grad_(False).type(dtype), chunk=chunk)


def peak(decoder: Decoder, length: int) -> float:
    """GB while a clip is decoded, weights excepted, if nothing is compiled."""
    with Watch() as watch:
        for _ in decoder.decode(torch.empty(1, 12, length, *FULL_SIZE, device="meta")):
            pass
    return float(watch.peak / 1e9)


@pytest.mark.parametrize(("chunk", "most"), [(1, 6.2), (2, 9.4)])
def test_memory_at_full_size_is_bounded_whatever_the_length(chunk: int, most: float) -> None:
    decoder = full_size(torch.bfloat16, chunk)
    short, long = peak(decoder, 4), peak(decoder, 12)
    assert long < most
    assert long - short < 0.05


class CardOfGroup(GroupRanks):
    """Without the other cards, as tensors without numbers cannot be exchanged."""

    def __init__(self, rank: int) -> None:
        self.rank, self.cards = rank, 2

    def _pass_on(self, frames: Tensor) -> Tensor:
        return torch.empty_like(frames.contiguous())

    def collect(self, frames: Tensor) -> Tensor:
        return frames


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("chunk", "most"), [(1, 6.3), (2, 9.5)])
def test_a_card_of_a_group_needs_two_frames_more_at_most(
    rank: int, chunk: int, most: float
) -> None:
    decoder = full_size(torch.bfloat16, chunk)
    decoder.join(CardOfGroup(rank))
    assert peak(decoder, 12) < most


class Convolved(nn.Module):
    """A norm and the convolution after it, compiled as one."""

    def __init__(self, norm: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, frames: Tensor) -> Any:
        with patch("torch.compiler.is_compiling", lambda: True):
            frames = self.norm(frames)
        return self.conv(frames)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # PyTorch's own
def test_compiled_rank_0_stores_no_concatenation_of_its_first_chunk() -> None:
    from torch._inductor import config  # noqa: PLC0415 (warns when it is imported)

    from tests.bench.engine_counts.fusion import plan  # noqa: PLC0415 (it too)

    decoder = full_size(torch.bfloat16, 1)
    decoder.join(CardOfGroup(0))
    resnet = decoder._decoder.block_out.resnets[0]
    frames = torch.empty(1, 128, 6, 480, 848, dtype=torch.bfloat16, device="meta")
    frames = frames.contiguous(memory_format=torch.channels_last_3d)
    with config.patch(force_pointwise_cat=True):
        planned = plan(Convolved(resnet.norm1, resnet.conv1), (frames,))
    assert planned.bytes / 1e9 < 5.3  # with the concatenation, 6.27


@pytest.mark.parametrize(("rank", "size"), [(None, 2.69), (0, 2.64), (1, 2.64)])
def test_caches_at_full_size_are_overwritten_and_not_doubled(rank: int | None, size: float) -> None:
    decoder = full_size(torch.bfloat16, 1)
    if rank is not None:
        decoder.join(CardOfGroup(rank))
    latents = torch.empty(1, 12, 1, *FULL_SIZE, device="meta")
    _, first = decoder._step(latents, None)
    _, second = decoder._step(latents, first)
    assert [id(cache) for cache in tree_leaves(first)] == [id(c) for c in tree_leaves(second)]
    stored = sum(cache.untyped_storage().nbytes() for cache in tree_leaves(first))
    assert stored / 1e9 == pytest.approx(size, abs=0.01)


@pytest.mark.parametrize(
    ("chunk", "length", "size", "fits"),
    [
        (6, 28, FULL_SIZE, True),
        (7, 28, FULL_SIZE, False),
        (7, 6, FULL_SIZE, True),
        (1, 28, (181, 180), True),
        (1, 28, (181, 181), False),  # only with the past frames, 8 of 1450x1450 and 128 channels
    ],
)
def test_chunks_too_large_for_cudnn_are_refused(
    chunk: int, length: int, size: tuple[int, int], fits: bool
) -> None:
    decoder = full_size(torch.bfloat16, chunk)
    latents = torch.empty(1, 12, length, *size, device="meta")
    if fits:
        decoder.decode(latents)
    else:
        with pytest.raises(ValueError, match=f"chunk={chunk} is too large for latents of"):
            decoder.decode(latents)
