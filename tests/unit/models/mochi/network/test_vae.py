"""The decoder beside diffusers' own: the same pictures, in chunks, also compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from models.mochi.network.vae import Decoder
from tests.support.models.tiny_vae import joined, make_decoder, make_latents, make_vae

LENGTHS_AND_CHUNKS = [(length, chunk) for length in range(1, 6) for chunk in range(1, length + 2)]


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


def decibels(some: Tensor, others: Tensor) -> float:
    """Ratio of peak signal to noise."""
    noise = (some.double() - others.double()).square().mean()
    return float(10 * torch.log10(255**2 / noise))


@pytest.fixture(scope="module")
def exact() -> AutoencoderKLMochi:
    """In float64, where rounding hides nothing."""
    return make_vae(torch.float64)


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


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_in_bfloat16_it_is_as_good_as_genmo_s_decode_and_better_than_stock_s() -> None:
    channels = {"decoder_block_out_channels": (32, 64, 64, 96)}
    reference, stock = (make_vae(dtype, **channels) for dtype in (torch.float32, torch.bfloat16))
    latents = make_latents(4, 6, 10)
    best, theirs = stock_frames(reference, latents), stock_frames(stock, latents)
    ours = joined(make_decoder(stock, 2).decode(latents))
    genmo = stock_frames_under_autocast(reference, latents)
    assert decibels(ours, genmo) >= 50
    assert decibels(ours, best) >= decibels(genmo, best) - 0.1
    assert decibels(ours, best) > decibels(theirs, best)


def stock_frames_under_autocast(stock: AutoencoderKLMochi, latents: Tensor) -> Tensor:
    """As Genmo decodes on a GPU, where autocast computes norms in float32."""
    for module in stock.decoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
    with torch.autocast("cpu", torch.bfloat16):
        return stock_frames(stock, latents)


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


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_compiled_norm_is_the_eager_one(dtype: torch.dtype, error: float) -> None:
    vae = make_vae(dtype, decoder_block_out_channels=(64, 32, 32, 32))
    norm = make_decoder(vae, 1)._decoder.block_out.resnets[0].norm1
    generator = torch.Generator().manual_seed(0)
    # The two channels of a group differ in mean and spread.
    spread, mean = torch.randn(2, 64, 1, 1, generator=generator).mul(5).exp2().to(dtype)
    frames = torch.randn(3, 64, 8, 10, generator=generator, dtype=dtype) * spread + mean
    expected = norm._eager(frames)
    assert (norm._fusible(frames) - expected).abs().max() < error * expected.abs().max()


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
