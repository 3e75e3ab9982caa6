from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi
from diffusers.video_processor import VideoProcessor
from torch import Tensor, UntypedStorage, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.mochi.network import vae
from models.mochi.network.vae import Decoder
from models.mochi.synthetic.values import random_values

CONTRAST = 0.3
"""Keeps the pictures mostly between black and white, and far from grey."""

LENGTHS_AND_CHUNKS = [(length, chunk) for length in range(1, 6) for chunk in range(1, length + 2)]

FULL_SIZE = (60, 106)
"""Height and width of the latents of 848x480."""


def make_vae(dtype: torch.dtype, **config: Any) -> AutoencoderKLMochi:
    """A small one, each of whose parameters matters."""
    small = AutoencoderKLMochi(
        **{
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            **config,
        }
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in small.named_parameters():
        parameter.data = random_values(name, parameter.shape, generator)
    small.decoder.proj_out.weight.data *= CONTRAST
    return small.requires_grad_(False).type(dtype)


def make_decoder(stock: AutoencoderKLMochi, chunk: int) -> Decoder:
    return Decoder(copy.deepcopy(stock), chunk=chunk)


def make_latents(length: int, height: int = 2, width: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 12, length, height, width, generator=generator)


def stock_video(stock: AutoencoderKLMochi, latents: Tensor) -> Tensor:
    """What the pipeline of diffusers decodes: (1, 3, frames, height, width)."""
    config = stock.config
    if config.latents_mean is None:
        latents = latents / config.scaling_factor
    else:
        mean = torch.tensor(config.latents_mean).view(1, 12, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, 12, 1, 1, 1)
        latents = latents * std / config.scaling_factor + mean
    video: Tensor = stock.decode(latents.to(stock.dtype), return_dict=False)[0]
    return video


def stock_frames(stock: AutoencoderKLMochi, latents: Tensor) -> Tensor:
    """The pipeline's pictures, as (frames, height, width, 3) of bytes."""
    video = stock_video(stock, latents).float()
    [pictures] = VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="pil")
    size = pictures[0].size
    data = bytearray(b"".join(picture.tobytes() for picture in pictures))
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, size[1], size[0], 3)


def joined(chunks: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(chunks))


def decibels(some: Tensor, others: Tensor) -> float:
    """Ratio of peak signal to noise."""
    noise = (some.double() - others.double()).square().mean()
    return float(10 * torch.log10(255**2 / noise))


@pytest.fixture(scope="module")
def exact() -> AutoencoderKLMochi:
    """In float64, where rounding hides nothing."""
    return make_vae(torch.float64)


@pytest.fixture(scope="module")
def single() -> AutoencoderKLMochi:
    return make_vae(torch.float32)


@pytest.fixture(scope="module")
def exact_videos(exact: AutoencoderKLMochi) -> dict[int, Tensor]:
    """By their length in latent frames."""
    return {length: stock_video(exact, make_latents(length)) for length in range(1, 6)}


# The same pictures as those of the stock pipeline


@pytest.mark.parametrize(("length", "chunk"), LENGTHS_AND_CHUNKS)
def test_chunks_are_exactly_what_the_stock_vae_decodes_at_once(
    exact: AutoencoderKLMochi, exact_videos: dict[int, Tensor], length: int, chunk: int
) -> None:
    videos = list(make_decoder(exact, chunk)._videos(make_latents(length)))
    video = torch.cat(videos, dim=2)[:, :, 5:]
    assert video.shape == (1, 3, 6 * length - 5, 16, 24)
    # Not equal: layout and size decide in which order sums are taken.
    assert (video - exact_videos[length]).abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_bytes_are_those_of_the_stock_pipeline(exact: AutoencoderKLMochi, chunk: int) -> None:
    latents = make_latents(3)
    ours = joined(make_decoder(exact, chunk).decode(latents))
    assert torch.equal(ours, stock_frames(exact, latents))


@pytest.mark.parametrize(("length", "chunk"), LENGTHS_AND_CHUNKS)
def test_in_float32_no_byte_is_more_than_a_step_away_and_hardly_any_is(
    single: AutoencoderKLMochi, length: int, chunk: int
) -> None:
    latents = make_latents(length)
    frames = joined(make_decoder(single, chunk).decode(latents))
    difference = (frames.int() - stock_frames(single, latents).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


def test_in_bfloat16_it_is_as_good_as_the_stock_vae() -> None:
    channels = {"decoder_block_out_channels": (32, 64, 64, 96)}
    reference, stock = (make_vae(dtype, **channels) for dtype in (torch.float32, torch.bfloat16))
    latents = make_latents(4, 6, 10)
    best, theirs = stock_frames(reference, latents), stock_frames(stock, latents)
    ours = joined(make_decoder(stock, 2).decode(latents))
    assert decibels(ours, theirs) >= 50
    # An error of at most 1.1 times theirs.
    assert decibels(ours, best) >= decibels(theirs, best) - 0.83


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 1.5},
        {"latents_mean": None, "latents_std": None, "scaling_factor": 1.5},
    ],
    ids=["mean, deviation and scale", "scale alone"],
)
def test_latents_are_unnormalised_as_the_config_says(config: dict[str, Any]) -> None:
    stock, latents = make_vae(torch.float64, **config), make_latents(2)
    ours = joined(make_decoder(stock, 1).decode(latents))
    assert torch.equal(ours, stock_frames(stock, latents))


def test_latents_are_unnormalised_before_they_lose_precision() -> None:
    stock = make_vae(torch.bfloat16)
    seen: list[Tensor] = []
    decoder = make_decoder(stock, 3)
    decoder._decoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latents = make_latents(3)
    joined(decoder.decode(latents))
    mean = torch.tensor(stock.config.latents_mean).view(1, 12, 1, 1, 1)
    std = torch.tensor(stock.config.latents_std).view(1, 12, 1, 1, 1)
    assert torch.equal(seen[0], (latents * std + mean).bfloat16())


# How the frames come


def test_the_remainder_comes_first_without_the_surplus_frames(single: AutoencoderKLMochi) -> None:
    chunks = list(make_decoder(single, 3).decode(make_latents(8)))
    assert [tuple(chunk.shape) for chunk in chunks] == [
        (2 * 6 - 5, 16, 24, 3),
        (3 * 6, 16, 24, 3),
        (3 * 6, 16, 24, 3),
    ]
    assert {chunk.dtype for chunk in chunks} == {torch.uint8}
    assert all(chunk.is_contiguous() for chunk in chunks)


def test_a_chunk_is_decoded_when_it_is_asked_for(single: AutoencoderKLMochi) -> None:
    calls: list[None] = []
    decoder = make_decoder(single, 1)
    decoder._decoder.register_forward_pre_hook(lambda *_: calls.append(None))
    chunks = decoder.decode(make_latents(3))
    for number in range(3):
        assert len(calls) == number
        next(chunks)


def test_a_clip_leaves_nothing_for_the_next(single: AutoencoderKLMochi) -> None:
    first, second = make_latents(4, seed=1), make_latents(3, seed=2)
    decoder = make_decoder(single, 1)
    expected = joined(make_decoder(single, 1).decode(second))
    joined(decoder.decode(first))
    assert torch.equal(joined(decoder.decode(second)), expected)


def test_a_clip_can_be_abandoned(single: AutoencoderKLMochi) -> None:
    latents = make_latents(4)
    decoder = make_decoder(single, 1)
    expected = joined(decoder.decode(latents))
    abandoned: Any = decoder.decode(make_latents(4, seed=1))
    next(abandoned)
    next(abandoned)
    abandoned.close()
    assert torch.equal(joined(decoder.decode(latents)), expected)


def test_gradients_are_off_for_the_decoder_and_on_for_the_consumer() -> None:
    stock = make_vae(torch.float32).requires_grad_(True)
    for video in Decoder(stock, chunk=1)._videos(make_latents(2)):
        assert not video.requires_grad
        assert torch.is_grad_enabled()


def test_the_encoder_is_dropped() -> None:
    stock = make_vae(torch.float32)
    Decoder(stock, chunk=1)
    assert all(name.startswith("decoder.") for name, _ in stock.named_parameters())


def test_the_parameters_are_those_of_the_vae(single: AutoencoderKLMochi) -> None:
    stock = copy.deepcopy(single)
    before = {id(parameter) for parameter in stock.decoder.parameters()}
    Decoder(stock, chunk=1)
    assert {id(parameter) for parameter in stock.decoder.parameters()} == before


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
    assert len(seen) == 10 + 10 + 3 + 6
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


def test_a_norm_copies_nothing(single: AutoencoderKLMochi) -> None:
    norm = make_decoder(single, 1)._decoder.block_out.resnets[0].norm1
    inputs = torch.randn(1, 32, 3, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    with Watch() as watch:
        norm(inputs)
    assert watch.operators == ["aten.native_group_norm"]


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


def test_caches_at_full_size_are_overwritten_and_not_doubled() -> None:
    decoder = full_size(torch.bfloat16, 1)
    latents = torch.empty(1, 12, 1, *FULL_SIZE, device="meta")
    _, first = decoder._step(latents, None)
    _, second = decoder._step(latents, first)
    assert [id(cache) for cache in tree_leaves(first)] == [id(c) for c in tree_leaves(second)]
    assert sum(cache.nbytes for cache in tree_leaves(first)) / 1e9 == pytest.approx(2.69, abs=0.01)


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


# Compiling


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    """Captures graphs as the real compiler does, and runs them as they are."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


def compiled(
    stock: AutoencoderKLMochi, chunk: int, backend: str | CompileCounterWithBackend
) -> Decoder:
    decoder = make_decoder(stock, chunk)
    decoder.compile(backend)
    return decoder


def test_compiled_it_decodes_the_same(single: AutoencoderKLMochi) -> None:
    torch._dynamo.reset()
    decoder = compiled(single, 2, "aot_eager")
    for length in (3, 2):
        latents = make_latents(length)
        expected = make_decoder(single, 2)._videos(latents)
        for ours, theirs in zip(decoder._videos(latents), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_clips_share_their_graphs(
    single: AutoencoderKLMochi, counter: CompileCounterWithBackend
) -> None:
    decoder = compiled(single, 2, counter)
    graphs = []
    for length in (7, 9, 1, 8, 2):
        joined(decoder.decode(make_latents(length)))
        graphs.append(counter.frame_count)
    assert graphs == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_there_is_a_graph_for_each_first_chunk_and_one_for_all_others(
    single: AutoencoderKLMochi, counter: CompileCounterWithBackend, chunk: int
) -> None:
    decoder = compiled(single, chunk, counter)
    for length in range(1, 29):
        joined(decoder.decode(make_latents(length, 1, 1)))
    assert counter.frame_count == chunk + 1
