"""Measurements beside whole requests: peak speed, copying, encoding, GPU waits, kernels."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from models.engine import Clip
from models.mochi.bench.results import Kernel, Name
from models.mochi.bench.stages import wait
from models.mochi.memory.host_copy import to_host
from models.video.encoding import encode

PRODUCTS = {
    "cuda": ((8192, 8192, 8192), (16384, 3072, 9216), (16384, 8192, 3072), (4096, 4096, 16384)),
    "cpu": ((512, 512, 512),),
}
"""(rows, inner, columns) of the matrix products that find a card's peak, by device type."""

CHUNK = 7
"""Frames copied to main memory at a time."""


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """The mean duration of `run` on the device, after three calls that do not count."""
    for _ in range(3):
        run()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - started) / repeats


def matmul_peak(device: torch.device, repeats: int = 10) -> float:
    """TFLOP/s of the fastest of `PRODUCTS`: bfloat16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return max(product_tflops(shape, dtype, device, repeats) for shape in PRODUCTS[device.type])


def product_tflops(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, repeats: int = 10
) -> float:
    """TFLOP/s of a linear layer; `shape` is (rows, inner, columns)."""
    rows, inner, columns = shape
    # Not zeros: those draw less power, and so run at a higher clock.
    inputs = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    seconds = seconds_of(lambda: functional.linear(inputs, weight), device, repeats)
    return 2 * rows * inner * columns / seconds / 1e12


def noise_chunks(frames: int, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Chunks of random frames, `frames` or a few more in all; `size` is (width, height)."""
    return [
        torch.randint(256, (CHUNK, *size[::-1], 3), dtype=torch.uint8, device=device)
        for _ in range(-(-frames // CHUNK))
    ]


def copy_seconds(chunks: list[Tensor], frames: int) -> float:
    wait(chunks[0].device)
    started = time.perf_counter()
    for _ in to_host(iter(chunks), frames):
        pass
    return time.perf_counter() - started


def encode_seconds(chunks: list[Tensor], frames: int, size: tuple[int, int]) -> float:
    pictures = list(to_host(iter(chunks), frames))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        encode(Clip(*size, iter(pictures)), 16.0, Path(folder) / "video.mp4")
        return time.perf_counter() - started


@contextmanager
def counted_syncs() -> Iterator[Callable[[], int]]:
    """Count the waits for the GPU that PyTorch's own operators cause inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchronizing" in str(warning.message) for warning in caught)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Recording:
    """A profile of what a device does between `start` and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])],
            acc_events=True,  # there is one cycle only; otherwise torch 2.11 warns of several
        )

    def start(self) -> None:
        wait(self._device)
        self._profile.start()

    def stop(self) -> None:
        wait(self._device)
        self._profile.stop()

    def save(self, engine: Name, path: Path) -> list[Kernel]:
        """Write the trace for a browser; return the slowest kernels."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
        return self.slowest(engine)

    def slowest(self, engine: Name, count: int = 20) -> list[Kernel]:
        attribute = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        kernels = [
            Kernel(engine, event.key, event.count, getattr(event, attribute) / 1000)
            for event in self._profile.key_averages()
        ]
        return sorted(kernels, key=lambda kernel: kernel.ms, reverse=True)[:count]
