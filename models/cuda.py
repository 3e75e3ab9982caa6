"""Reads how much of its card a worker uses, without a call that could wait for the card."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.device import DeviceUse
from models.errors import EngineBrokenError

GIB = 2**30


FULL = ("out of memory", "STATUS_ALLOC_FAILED", "unable to find an engine")
"""What errors other than torch's own say when the device's memory is full: of CUDA's libraries, and
of a convolution that finds no room to work in."""


@dataclass(frozen=True)
class CudaMeter:
    """Of one CUDA device, like `cuda:1`."""

    device: str

    def __call__(self) -> DeviceUse:
        """The allocator's books, not `mem_get_info`: nothing is asked of CUDA, so a thread may."""
        return DeviceUse(
            allocated_bytes=torch.cuda.memory_allocated(self.device),
            reserved_bytes=torch.cuda.memory_reserved(self.device),
            total_bytes=torch.cuda.get_device_properties(self.device).total_memory,
            busy=_busy(self.device),
        )


def _busy(device: str) -> float | None:
    """Asked of the driver's library."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # noqa: BLE001 (its own errors are known only where it is installed)
        return None


@contextlib.contextmanager
def translate_gpu_errors(device: torch.device) -> Iterator[None]:
    """Raise what has happened to the device, and not what it was doing.

    Raises:
        torch.OutOfMemoryError: its memory is full.
        EngineBrokenError: it answers nothing any more.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in FULL):
            raise torch.OutOfMemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError) or _is_broken(device):
            raise EngineBrokenError("The GPU failed.") from error
        raise


def _is_broken(device: torch.device) -> bool:
    """After an error that it cannot get over, a GPU refuses everything to this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def choose_allocator() -> None:
    """To be called before CUDA is first used; a choice of the user's stands."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name that it had before
        os.environ.setdefault("PYTORCH_ALLOC_CONF", _allocator())


def _allocator() -> str:
    """Videos of many lengths would otherwise leave gaps in the GPU's memory that fit nothing."""
    options = "expandable_segments:True"
    if torch.__version__ >= (2, 13):  # type: ignore[operator]
        # Pinned memory is otherwise rounded up to a power of two, tensor by tensor: T5 takes 24 GiB
        # instead of 18. Older versions do not know the option.
        options += ",pinned_max_round_threshold_mb:1"
    return options
