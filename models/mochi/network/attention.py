"""Joint attention over [visual ‖ text]: the kernel, and the rotary position tables.

The text has no padding, so there is no mask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)

from models.errors import EngineUnavailableError

Kernel = Literal["cudnn", "fa3", "fa4", "flash", "efficient", "math"]

HOPPER, BLACKWELL = 9, 10
"""Major compute capabilities of H100 and H200, and of B200. Consumer Blackwells have 12."""

FIRST_CAPABILITY = (8, 0)
"""Ampere's: the first with bfloat16 products and fused attention for them."""

_BACKENDS: dict[Kernel, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "fa3": SDPBackend.FLASH_ATTENTION,
    "fa4": SDPBackend.FLASH_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_PACKAGES = {"fa3": "flash_attn_interface", "fa4": "flash_attn.cute"}
"""The packages that PyTorch loads for these kernels."""


def choose_kernel(wanted: Kernel | Literal["auto"], device: torch.device) -> Kernel:
    """Choose an attention kernel that runs on the device.

    `auto` is FlashAttention 3 or else 4 on Hopper and 4 on Blackwell where it works, else cuDNN's;
    on older cards PyTorch's own flash attention, which is as fast there, and is a CPU's only fused
    kernel.

    Raises:
        EngineUnavailableError: the wanted kernel is not installed, or does not run.
    """
    if wanted != "auto":
        if not _is_installed(wanted):
            raise EngineUnavailableError(
                f"MOCHI_ATTENTION={wanted} needs the Python package {_PACKAGES[wanted]}, which is "
                "not installed here. Install it, or leave the choice to MOCHI_ATTENTION=auto."
            )
        if not _runs(wanted, device):
            raise EngineUnavailableError(
                f"MOCHI_ATTENTION={wanted} does not run on this device. Leave the choice to "
                "MOCHI_ATTENTION=auto."
            )
        return wanted
    return next(
        (kernel for kernel in _fastest(device) if _is_installed(kernel) and _runs(kernel, device)),
        "math",
    )


def _fastest(device: torch.device) -> tuple[Kernel, ...]:
    """The kernels for a device, best first."""
    if device.type != "cuda":
        return ("flash",)
    major = torch.cuda.get_device_capability(device)[0]
    made_for: dict[int, tuple[Kernel, ...]] = {HOPPER: ("fa3", "fa4"), BLACKWELL: ("fa4",)}
    newer: tuple[Kernel, ...] = ("cudnn",) if major >= HOPPER else ()
    return (*made_for.get(major, ()), *newer, "flash", "efficient")


def _runs(kernel: Kernel, device: torch.device) -> bool:
    """Try the kernel once on a GPU, as its package may be built for another torch."""
    if device.type != "cuda":
        return True
    some = torch.zeros(1, 64, 1, 128, dtype=torch.bfloat16, device=device)
    try:
        with use_kernel(kernel):
            joint_attention(some, some, some)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 (packages that were built for another torch raise anything)
        return False
    return True


@contextmanager
def use_kernel(kernel: Kernel) -> Iterator[None]:
    """Make `functional.scaled_dot_product_attention` use only this kernel inside."""
    if kernel not in _PACKAGES:
        with sdpa_kernel(_BACKENDS[kernel]):
            yield
        return
    activate_flash_attention_impl(kernel.upper())
    try:
        with sdpa_kernel(_BACKENDS[kernel]):
            yield
    finally:
        restore_flash_attention_impl()


def _is_installed(kernel: Kernel) -> bool:
    package = _PACKAGES.get(kernel)
    if package is None:
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of the parent package
        return False


def joint_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask.

    Args:
        query: `(1, M, heads, head_dim)`.
        key: `(1, N, heads, head_dim)`.
        value: of the shape of `key`.

    Returns:
        `(1, M, heads * head_dim)`.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def attend_jointly(visual: Sequence[Tensor], text: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Joint attention of visual tokens and text.

    Args:
        visual: query and key, `(1, N, heads, head_dim)`, and value, `(N, heads * head_dim)`.
        text: the same of L tokens; without a query, where the text is not read afterwards.

    Returns:
        `(1, N, heads * head_dim)`, and of the text's queries.
    """
    query, key, value = visual
    *text_query, text_key, text_value = text
    out = joint_attention(
        torch.cat((query, *text_query), dim=1),
        torch.cat((key, text_key), dim=1),
        # Before any view, so that the compiler lets the products write into it.
        torch.cat((value, text_value)).view(1, -1, *query.shape[2:]),
    )
    tokens = query.shape[1]
    return out[:, :tokens], out[:, tokens:]


class RopeTables:
    """Cosines and sines of the rotary position embedding, cached for the latest shape."""

    def __init__(self, stock: MochiTransformer3DModel) -> None:
        self._area: int = stock.rope.target_area
        self._frequencies: Tensor = stock.pos_frequencies.data.float()
        self._share: Callable[[Tensor], Tensor] = lambda positions: positions
        self.of = lru_cache(maxsize=1)(self._of)  # half a GiB for the longest video

    def to(self, device: torch.device) -> None:
        """Move to `device`, and drop the cached tables."""
        self._frequencies = self._frequencies.to(device)
        self.of.cache_clear()

    def keep(self, share: Callable[[Tensor], Tensor]) -> None:
        """From now on, compute the tables for this share of the positions, `(N, 3)`, only."""
        self._share = share
        self.of.cache_clear()

    def _of(self, frames: int, height: int, width: int) -> Tensor:
        """The tables for a grid of visual tokens in the order of (frame, row, column).

        Positions count frames from 0, and rows and columns from the middle, in a unit that gives
        every grid the area that Mochi was trained on.

        Returns:
            float32 `(2, frames * height * width, heads, head_dim / 2)`: cosines, then sines.
        """
        device = self._frequencies.device
        unit = (self._area / (height * width)) ** 0.5
        axes = (
            torch.arange(frames, device=device, dtype=torch.float32),
            _centres(height, unit, device),
            _centres(width, unit, device),
        )
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
        angles = torch.einsum("nd,dhf->nhf", self._share(positions), self._frequencies)
        return torch.stack((angles.cos(), angles.sin()))


def _centres(count: int, unit: float, device: torch.device) -> Tensor:
    edges = torch.linspace(-count * unit / 2, count * unit / 2, count + 1, device=device)
    return (edges[:-1] + edges[1:]) / 2


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate each pair of channels by the angle of its position.

    Args:
        x: float32 `(1, N, heads, head_dim)`, in the order of `pairs_to_halves`.
        rope: from `RopeTables.of`.
    """
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def pairs_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the channels of each head: the first of each pair, then the second of each.

    Mochi's pairs are neighbours. A GPU reads halves of a head in wide pieces. Attention is the
    same, as queries and keys have the same order.

    Args:
        weight: `(heads * head_dim, ...)`, of a layer or a norm; copied.
        head_dim: channels of a head.
    """
    pairs: Tensor = weight.unflatten(0, (-1, head_dim // 2, 2))  # type: ignore[no-untyped-call]
    return pairs.transpose(1, 2).flatten(0, 2)
