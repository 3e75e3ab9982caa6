"""Reads how much of its card a worker uses, without a call that could wait for the card."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.device import DeviceUse


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
