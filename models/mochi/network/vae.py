"""The VAE's decoder: decodes latents in chunks, with the same result as all at once.

Group norms are per frame, and upsampling is local. Only the causal convolutions look back in time,
by two frames. So a chunk needs two frames per convolution of the chunks before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.models.autoencoders.autoencoder_kl_mochi import (
    MochiChunkedGroupNorm3D,
    MochiResnetBlock3D,
    MochiUpBlock3D,
)
from torch import Tensor, nn
from torch.nn import functional

from models.mochi.network.ranks import ALONE, PAST, GroupRanks, Ranks

CONV_LIMIT = 2**31
"""cuDNN needs the input of a 3-D convolution to have fewer elements; the fallback is slow.

The widest input, of the last blocks, has 6 frames per latent frame, 2 past frames, and a pixel on
each side: 128 x (6 chunk + 2) x 482 x 850 elements at 848x480. So `chunk` is at most 6 there.
"""

_Caches = dict[str, Any]
"""Per block, per residual block: the cache of each convolution, see `_Conv`."""


class Decoder:
    """Decodes latents chunk by chunk, in memory that does not grow with the clip."""

    def __init__(self, vae: AutoencoderKLMochi, *, chunk: int) -> None:
        """Take over the decoder of a VAE, and drop the encoder.

        Args:
            vae: modules of its decoder are replaced by others with the same parameters. It may
                still be moved between devices.
            chunk: latent frames to decode at a time, 1 or more. Memory grows with it.
        """
        del vae.encoder
        _adapt(vae.decoder)
        self._decoder = vae.decoder
        self._forward: Callable[..., tuple[Tensor, _Caches]] = vae.decoder
        self._config = vae.config
        self._time: int = vae.temporal_compression_ratio
        self._space: int = vae.spatial_compression_ratio
        self._chunk = chunk
        self._ranks: Ranks = ALONE

    @property
    def channels(self) -> int:
        channels: int = self._config.latent_channels
        return channels

    def join(self, ranks: GroupRanks) -> None:
        """Share each clip with other cards. Call it before `compile`."""
        self._ranks = ranks
        for parent in list(self._decoder.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _Conv):
                    setattr(parent, name, _SharedConv(child, ranks))

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the decoder for frames of one size, when it first runs.

        There are at most `chunk` + 1 graphs for clips of all lengths: for a first chunk of 1 to
        `chunk` latent frames, and for all later chunks. As torch allows 8, `chunk` is at most 7.

        Args:
            backend: of `torch.compile`.
        """
        # Otherwise the cached frames are written first, for all convolutions at once, whose inputs
        # are then all in memory together.
        options: dict[str, Any] = {"force_pointwise_cat": True}
        self._forward = torch.compile(
            self._decoder,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            options=options if backend == "inductor" else None,
        )

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode a clip. On a GPU, drawing a chunk launches its kernels without waiting.

        Args:
            latents: (1, channels, T, h, w), float32, normalised, on the VAE's device.

        Returns:
            Yields RGB chunks, (frames, 8 h, 8 w, 3), uint8, on the same device: 6 T - 5 frames in
            all. The caller may stop early. Of a group, only rank 0 yields them.

        Raises:
            ValueError: the chunks are too large for cuDNN.
        """
        length, height, width = latents.shape[2:]
        frames = PAST + self._time * min(self._chunk, length)
        channels: int = self._config.decoder_block_out_channels[0]
        if channels * frames * (height * self._space + 2) * (width * self._space + 2) >= CONV_LIMIT:
            raise ValueError(f"chunk={self._chunk} is too large for latents of {width}x{height}.")
        return self._frames(latents)

    def _frames(self, latents: Tensor) -> Iterator[Tensor]:
        surplus = self._time - 1
        for video in self._videos(latents):
            yield self._ranks.collect(_to_bytes(video))[surplus:]
            surplus = 0

    def _videos(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield (1, 3, frames, 8 h, 8 w) with the surplus frames, mostly between -1 and 1."""
        # Once, as copying its constants to the device waits for the kernels before.
        latents = unnormalised(latents, self._config)
        caches: _Caches | None = None
        for chunk in self._ranks.chunks(latents, self._chunk):
            video, caches = self._step(chunk, caches)
            yield video

    @torch.no_grad()
    def _step(self, latents: Tensor, caches: _Caches | None) -> tuple[Tensor, _Caches]:
        inputs = latents.to(self._decoder.conv_in.weight.dtype)
        # A clone, as graphs depend on strides, and a view's depend on the length of the clip.
        inputs = inputs.clone(memory_format=torch.channels_last_3d)
        return self._forward(inputs, conv_cache=caches)


def unnormalised(latents: Tensor, config: Any) -> Tensor:  # noqa: ANN401 (of an `AutoencoderKLMochi`)
    """Latents of the transformer to those of the VAE, as in `MochiPipeline.__call__`."""
    scale: float = config.scaling_factor
    if config.latents_mean is None or config.latents_std is None:
        return latents / scale
    mean = latents.new_tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = latents.new_tensor(config.latents_std).view(1, -1, 1, 1, 1)
    return latents * std / scale + mean


def _to_bytes(video: Tensor) -> Tensor:
    """(1, 3, frames, height, width) between -1 and 1 to (frames, height, width, 3), uint8."""
    frames = video[0].permute(1, 2, 3, 0).float()
    return (frames / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def _adapt(decoder: nn.Module) -> None:
    """Replace the modules that prevent chunks, channels-last tensors or a single graph."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CogVideoXCausalConv3d):
                setattr(parent, name, _Conv(child))
            elif isinstance(child, MochiChunkedGroupNorm3D):
                setattr(parent, name, _Norm(child, of_sum=name == "norm1"))
            elif isinstance(child, MochiUpBlock3D):
                setattr(parent, name, _UpBlock(child))
        if isinstance(parent, MochiResnetBlock3D):
            parent.nonlinearity = nn.Identity()  # a part of `_Norm`
    decoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


class _Conv(nn.Module):
    """A causal convolution, 3 in each direction, that continues the previous chunk.

    In time, its input is preceded by the last frames of the call before. Elsewhere the padding
    repeats the nearest element.
    """

    def __init__(self, stock: CogVideoXCausalConv3d) -> None:
        super().__init__()
        self.weight = stock.conv.weight
        self.bias = stock.conv.bias

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            inputs: (1, channels, frames, height, width).
            conv_cache: of the call before; overwritten. None for the first chunk.

        Returns:
            The same shape with other channels, and the cache for the next call:
            (1, 2, height + 2, width + 2, channels).
        """
        frames = inputs.shape[2]
        # Indices fuse with the norm before into one kernel. `pad` loses channels-last on CUDA, and
        # filling a buffer piece by piece does not fuse.
        rows, columns = _edges(inputs)
        padded = inputs.permute(0, 2, 3, 4, 1)
        if conv_cache is None:
            times = torch.arange(-PAST, frames, device=inputs.device).clamp(0)[:, None, None]
            padded = _stored(padded[:, times, rows, columns])
            # With a format, as the compiler drops a plain clone, and would keep all of `padded` in
            # memory for two frames.
            conv_cache = padded[:, -PAST:].clone(memory_format=torch.contiguous_format)
        else:
            padded = _stored(torch.cat([conv_cache, padded[:, :, rows, columns]], dim=1))
            conv_cache.copy_(padded[:, -PAST:])
        padded = padded.permute(0, 4, 1, 2, 3)
        return functional.conv3d(padded, self.weight, self.bias), conv_cache


class _SharedConv(nn.Module):
    """A `_Conv` of cards that decode neighbouring chunks at once."""

    def __init__(self, conv: _Conv, ranks: GroupRanks) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.ranks = ranks

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `_Conv`; the cache has no padding in space, as cards exchange none."""
        own = inputs.permute(0, 2, 3, 4, 1)
        rows, columns = _edges(inputs)
        # Without a name for the past, which would stay in memory. It is stored, as the compiler
        # otherwise stores all of the concatenation where the past is computed from the input.
        own = torch.cat([_stored(self.ranks.past(own, conv_cache)), own], dim=1)
        padded = _stored(own[:, :, rows, columns])
        del own
        latest = padded[:, -PAST:, 1:-1, 1:-1]
        if conv_cache is None:
            conv_cache = latest.clone(memory_format=torch.contiguous_format)
        else:
            conv_cache.copy_(latest)
        return functional.conv3d(padded.permute(0, 4, 1, 2, 3), self.weight, self.bias), conv_cache


def _edges(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a padded picture: the padding repeats the nearest element."""
    height, width = inputs.shape[3:]
    rows = torch.arange(-1, height + 1, device=inputs.device).clamp(0, height - 1)[:, None]
    return rows, torch.arange(-1, width + 1, device=inputs.device).clamp(0, width - 1)


class _Norm(nn.Module):
    """A group norm of each frame, and SiLU, in float32: rounded once, as in Genmo's code.

    Genmo decodes under autocast to bfloat16, where these work in float32, and convolutions round
    their inputs.
    """

    def __init__(self, stock: MochiChunkedGroupNorm3D, *, of_sum: bool) -> None:
        super().__init__()
        self.norm: nn.GroupNorm = stock.norm_layer
        self.dtype = torch.promote_types(self.norm.weight.dtype, torch.float32)
        self.norm.to(self.dtype)
        self.of_sum = of_sum

    def forward(self, inputs: Tensor) -> Tensor:
        """(1, channels, frames, height, width) to the same shape, format and dtype."""
        # Only a sum is read again later. A convolution's output is stored anyway, without its bias.
        inputs = _stored(inputs) if self.of_sum else inputs
        frames = inputs[0].transpose(0, 1)
        frames = self._fusible(frames) if torch.compiler.is_compiling() else self._eager(frames)
        return frames.transpose(0, 1)[None]

    def _eager(self, frames: Tensor) -> Tensor:
        """Frame by frame, as float32 copies of all would take the memory of a larger chunk."""
        results = torch.empty_like(frames)
        for frame, result in zip(frames[:, None], results[:, None], strict=True):
            result.copy_(functional.silu(self.norm(frame.to(self.dtype))))
        return results

    def _fusible(self, frames: Tensor) -> Tensor:
        """Compute the same in a form that fuses with the convolution's padding.

        PyTorch's own group norm does not, as it merges dimensions when it is compiled for a GPU.
        """
        norm, exact = self.norm, frames.to(self.dtype)
        # Of each channel first: with the channels last, a group's few lie apart in memory.
        variances, means = (
            each.view(len(frames), norm.num_groups, -1)
            for each in torch.var_mean(exact, dim=(2, 3), correction=0)
        )
        between, mean = torch.var_mean(means, dim=2, correction=0, keepdim=True)
        variance = variances.mean(2, keepdim=True) + between
        scale = (variance + norm.eps).rsqrt() * norm.weight.view(norm.num_groups, -1)
        shift = norm.bias.view(norm.num_groups, -1) - mean * scale
        scale, shift = (_stored(each.flatten(1))[..., None, None] for each in (scale, shift))
        return functional.silu(exact * scale + shift).to(frames.dtype)


def _stored(tensor: Tensor) -> Tensor:
    """Make the compiler store `tensor` in memory, in its present layout.

    Otherwise each kernel that reads it computes it anew, which takes longer and keeps its inputs in
    memory.
    """
    return tensor.as_strided(tensor.shape, tensor.stride())


class _UpBlock(nn.Module):
    """The stock block, but one copy turns channels into pixels, channels-last."""

    def __init__(self, stock: MochiUpBlock3D) -> None:
        super().__init__()
        self.resnets = stock.resnets
        self.proj = stock.proj
        time, space = stock.temporal_expansion, stock.spatial_expansion
        self.factors = (time, space, space)
        # From (channels, time, row, column) to channels last, so that the copy moves whole runs.
        for parameter in self.proj.parameters():
            rows = parameter.data.view(-1, *self.factors, *parameter.shape[1:])
            parameter.data = rows.movedim(0, 3).flatten(0, 3)

    def forward(
        self, hidden_states: Tensor, conv_cache: _Caches | None = None
    ) -> tuple[Tensor, _Caches]:
        """(1, channels, frames, height, width) to fewer channels, and more of all others."""
        past, caches = conv_cache or {}, {}
        for number, resnet in enumerate(self.resnets):
            name = f"resnet_{number}"
            hidden_states, caches[name] = resnet(hidden_states, conv_cache=past.get(name))
        pixels: Tensor = self.proj(hidden_states.permute(0, 2, 3, 4, 1))
        _, frames, height, width, _ = pixels.shape
        time, row, column = self.factors
        pixels = pixels.view(frames, height, width, time, row, column, -1)
        pixels = pixels.permute(0, 3, 1, 4, 2, 5, 6)
        pixels = pixels.reshape(1, frames * time, height * row, width * column, -1)
        return pixels.permute(0, 4, 1, 2, 3), caches
