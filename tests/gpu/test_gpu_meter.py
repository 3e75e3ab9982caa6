"""Run on a machine with a GPU: `scripts/bench-gpu OUT --only tests`."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from models.cuda import CudaEnergy, CudaMeter, card
from models.engine import DeviceUse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def test_a_card_is_read_from_another_thread() -> None:
    size = 64 * 2**20
    kept = torch.empty(size, dtype=torch.uint8, device="cuda")
    uses: list[DeviceUse] = []
    meter = CudaMeter([card("cuda")])
    thread = threading.Thread(target=lambda: uses.extend(meter()))
    thread.start()
    thread.join(30)
    (use,) = uses
    assert use.device == "cuda:0"
    assert use.allocated_bytes is not None
    assert use.reserved_bytes is not None
    assert kept.numel() <= use.allocated_bytes <= use.reserved_bytes <= use.total_bytes
    assert use.used_bytes is None or use.reserved_bytes <= use.used_bytes <= use.total_bytes
    assert use.busy is None or 0 <= use.busy <= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is only one CUDA device here")
def test_a_card_of_another_process_is_read_too() -> None:
    own, other = CudaMeter([card("cuda", rank) for rank in range(2)])()
    assert (own.device, other.device) == ("cuda:0", "cuda:1")
    assert (other.allocated_bytes, other.reserved_bytes) == (None, None)
    assert other.total_bytes > 0


def test_a_card_at_work_counts_energy_as_its_power_says() -> None:
    counter = CudaEnergy([card("cuda")])
    before = counter()
    if before is None:
        pytest.skip("this card, or a part of one, has no energy counter")
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        matrix @ matrix
        torch.cuda.synchronize()
    after = counter()
    assert after is not None
    watts = (after - before) / (time.monotonic() - began)
    assert 20 < watts < 2000
