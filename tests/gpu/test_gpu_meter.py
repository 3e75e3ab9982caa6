"""Run on a machine with a GPU: `scripts/bench-gpu OUT --only tests`."""

from __future__ import annotations

import threading

import pytest
import torch

from models.cuda import CudaMeter
from models.engine import DeviceUse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def test_a_card_is_read_from_another_thread() -> None:
    size = 64 * 2**20
    kept = torch.empty(size, dtype=torch.uint8, device="cuda")
    uses: list[DeviceUse] = []
    thread = threading.Thread(target=lambda: uses.append(CudaMeter("cuda")()))
    thread.start()
    thread.join(30)
    (use,) = uses
    assert kept.numel() <= use.allocated_bytes <= use.reserved_bytes <= use.total_bytes
    assert use.busy is None or 0 <= use.busy <= 1
