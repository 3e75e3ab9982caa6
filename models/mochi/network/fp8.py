"""Lossy speed: the big matrix products of the visual tokens in 8-bit floats (e4m3).

For normally distributed numbers a product is 3.7 % off (root mean square, measured on a CPU), where
bfloat16 is 0.2 % off. The weights take half the memory, and tensor cores are twice as fast.

This calls torch's own `scaled_mm`, which runs on a CPU too, except in torch 2.11. Torchao 0.18
calls the same product, but needs a GPU, and where it is installed diffusers warns at each start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from models.errors import EngineUnavailableError

NARROWEST = 2048
"""The fewest features of a layer on both sides. The text's layers, at 1536, are under 1 % of the
work, where 8 bits would save no time."""

MULTIPLE = 16
"""`scaled_mm` needs features in multiples of this."""

FIRST_CAPABILITY = (8, 9)
"""The lowest compute capability for `scaled_mm` (ATen/native/cuda/ScaledBlas.cpp)."""

FLOAT8 = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """A linear layer in e4m3, with a scale for each row of its weight and of its input.

    Its weights are plain parameters, so it moves between devices like an `nn.Linear`. It must not
    be cast to another dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise `linear`, a bfloat16 layer, on its device."""
        super().__init__()
        weight, scale = _scaled_rows(linear.weight.data)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`, both bfloat16, of two dimensions or more."""
        rows, scale = _scaled_rows(x.flatten(0, -2))
        product: Tensor = scaled_mm(
            rows,
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale.t(),
            ScalingType.RowWise,
            bias=self.bias,
            output_dtype=x.dtype,
            # Otherwise Hopper moves its sums to float32 registers after every 128 products, which
            # takes much of the speed: https://github.com/pytorch/pytorch/issues/147971
            use_fast_accum=True,
        )
        return product.view(*x.shape[:-1], self.weight.shape[0])


def check(device: str | torch.device) -> None:
    """Check that `device`, a CUDA device, multiplies 8-bit floats.

    Raises:
        EngineUnavailableError: it does not, or not with this torch.
    """
    if not torch.cuda.is_available():
        raise EngineUnavailableError(
            "MOCHI_FP8 needs a GPU, and there is no CUDA device here. Leave MOCHI_FP8 out."
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(device), capability
        raise EngineUnavailableError(
            "MOCHI_FP8 needs a GPU of compute capability 8.9 or later (Ada, Hopper, Blackwell), "
            f"and {name} has {major}.{minor}. Leave MOCHI_FP8 out."
        )
    # Before 2.12 the kernel for 8.9 ignores the current stream, and can hang:
    # https://github.com/pytorch/pytorch/issues/177651
    if capability == (8, 9) and torch.__version__ < "2.12":
        raise EngineUnavailableError(
            f"MOCHI_FP8 can hang on a GPU of compute capability 8.9 with torch {torch.__version__}."
            " Type pip install 'torch>=2.12', or leave MOCHI_FP8 out."
        )


def quantize(module: nn.Module) -> None:
    """Replace the big linear layers inside `module` by `Float8Linear`s.

    Args:
        module: bfloat16, and not a linear layer itself. May move to the GPU later.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _is_big(child):
                setattr(parent, name, Float8Linear(child))


def _is_big(linear: nn.Linear) -> bool:
    return all(size >= NARROWEST and size % MULTIPLE == 0 for size in linear.weight.shape)


def _scaled_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row of a matrix to the full range of e4m3.

    Returns:
        e4m3 `(rows, columns)`, and float32 `(rows, 1)` to multiply it by.
    """
    # The minimum keeps a row of zeros from being divided by 0.
    largest = matrix.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12)
    scale = largest / torch.finfo(FLOAT8).max
    return (matrix / scale).to(FLOAT8), scale
