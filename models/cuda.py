"""CUDA devices: the allocator, the errors, use and energy of a card. Imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from models.engine import DeviceUse
from models.errors import EngineBrokenError

GIB = 2**30
DRIVER = "libcuda.so.1"

OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "unable to find an engine")
"""Parts of the messages with which CUDA's libraries report full memory. The last one is that of a
convolution without room for its workspace."""


def driver_cuda() -> tuple[int, int] | None:
    """The CUDA version up to which the NVIDIA driver works; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    number = version.value  # 0 where there is a library and no driver
    return None if failed or not number else (number // 1000, number % 1000 // 10)


def choose_allocator() -> None:
    """Let the allocator grow its segments. Call this before CUDA is used.

    Otherwise videos of many lengths fragment the GPU's memory. An allocator that the environment
    names has precedence.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" in os.environ:  # the variable's former name
        return
    options = "expandable_segments:True"
    if torch.__version__ >= (2, 13):  # type: ignore[operator]  # of `TorchVersion`, typed as a text
        # Pinned memory is otherwise rounded up to a power of two, tensor by tensor: T5 takes 24 GiB
        # instead of 18. Older versions do not know the option.
        options += ",pinned_max_round_threshold_mb:1"
    os.environ.setdefault("PYTORCH_ALLOC_CONF", options)


@contextlib.contextmanager
def translate_gpu_errors(device: torch.device) -> Iterator[None]:
    """Tell full memory and a broken device from other errors inside.

    Raises:
        torch.OutOfMemoryError: the memory of the device is full.
        EngineBrokenError: the device refuses all further work of this process.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in OUT_OF_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError) or _is_broken(device):
            raise EngineBrokenError("The GPU failed.") from error
        raise


def _is_broken(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def card(device: str, rank: int = 0) -> torch.device:
    """The card of a rank of a group whose first has `device`, like `cuda` or `cuda:1`."""
    return torch.device("cuda", (torch.device(device).index or 0) + rank)


@dataclass(frozen=True)
class CudaMeter:
    """A `Meter` of CUDA devices, of which this process works on the first."""

    cards: Sequence[torch.device]

    def __call__(self) -> Sequence[DeviceUse]:
        own, *others = self.cards
        # Not `mem_get_info`: the allocator's counters can be read from any thread without waiting,
        # and those of NVML without memory on the card.
        use = replace(
            _use(own),
            allocated_bytes=torch.cuda.memory_allocated(own),
            reserved_bytes=torch.cuda.memory_reserved(own),
        )
        return [use, *map(_use, others)]


@dataclass(frozen=True)
class CudaEnergy:
    """An `EnergyCounter` of CUDA devices, by NVML, which counts from Volta on."""

    cards: Sequence[torch.device]

    def __call__(self) -> float | None:
        # Whatever NVML or its optional library raises: a run needs no energy counter. A part of a
        # card (MIG) has none.
        with contextlib.suppress(Exception):
            return sum(map(_millijoules, self.cards)) / 1000
        return None


def _millijoules(card: torch.device) -> int:
    """What the card has used since its driver was loaded."""
    import pynvml  # noqa: PLC0415 (of `nvidia-ml-py`, which is optional)

    pynvml.nvmlInit()  # counts its calls, and does nothing from the second on
    # NVML numbers all cards of the machine, torch those that CUDA_VISIBLE_DEVICES shows.
    uuid = f"GPU-{torch.cuda.get_device_properties(card).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def _use(card: torch.device) -> DeviceUse:
    used, busy = None, None
    # The errors of `nvidia-ml-py`, an optional library. A part of a card (MIG) refuses one alone.
    with contextlib.suppress(Exception):
        used = torch.cuda.device_memory_used(card)
    with contextlib.suppress(Exception):
        busy = torch.cuda.utilization(card) / 100
    return DeviceUse(str(card), torch.cuda.get_device_properties(card).total_memory, used, busy)
