"""`python -m tests.bench formats`: what each format of a video costs, beside the MP4.

The frames are the light mock's, smooth, and the same with the grain of a film, which is hard to
encode: real videos lie between. They are drawn before, so the times are the encoder's alone.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import av
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from models.engine import Clip
from models.mock.fake_engine import FakeEngine
from models.request.params import FORMATS, HEIGHT, WIDTH, Format, GenerateParams
from models.video.encoding import encode

FPS = 16.0
GRAIN = 8.0
"""Standard deviation, of 255 levels."""
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Of one video.

    Attributes:
        cpu: seconds of ffmpeg on all cores.
        wall: seconds until the file is whole, of frames that are ready.
        memory: bytes that ffmpeg was seen to hold at most.
        size: bytes of the file.
        psnr: decibels between the frames and the file's.
    """

    cpu: float
    wall: float
    memory: int
    size: int
    psnr: float


def run(frames: Sequence[int], count: int) -> None:
    """Measure `count` times each, in a process of its own, and print the medians."""
    table = Table(title=f"{WIDTH}x{HEIGHT}, median of {count}")
    for heading in ("frames", "pictures", "format", "CPU s", "s", "MiB of memory", "MB", "dB"):
        table.add_column(heading, justify="right")
    cases = [(n, grain, kind) for n in frames for grain in (0.0, GRAIN) for kind in FORMATS]
    for case in track(cases, console=Console(stderr=True), transient=True):
        costs = sorted((_apart(*case) for _ in range(count)), key=lambda cost: cost.cpu)
        cost, (number, grain, kind) = costs[count // 2], case
        table.add_row(
            *(str(number), "grain" if grain else "smooth", kind),
            *(f"{cost.cpu:.2f}", f"{cost.wall:.2f}", f"{cost.memory / MIB:.0f}"),
            *(f"{cost.size / 1e6:.2f}", f"{cost.psnr:.1f}"),
        )
    Console().print(table)


def _apart(frames: int, grain: float, kind: Format) -> Cost:
    """In a new process, whose only child is ffmpeg."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure, frames, grain, kind).result()


def _measure(frames: int, grain: float, kind: Format) -> Cost:
    pictures = _pictures(frames, grain)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"video.{kind}")
        began = time.perf_counter()
        with _memory() as seen:
            encode(Clip(WIDTH, HEIGHT, iter(pictures)), FPS, path, kind)
        wall = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        return Cost(cpu, wall, max(seen), path.stat().st_size, _psnr(path, pictures))


@contextmanager
def _memory() -> Iterator[list[int]]:
    """What the children of this process hold: the kernel's maximum counts them before `exec`."""
    seen, is_over = [0], Event()

    def look() -> None:
        while not is_over.wait(0.005):
            with suppress(psutil.Error):
                seen.extend(child.memory_info().rss for child in psutil.Process().children())

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


@cache
def _pictures(frames: int, grain: float) -> list[bytes]:
    params = GenerateParams(prompt="A red panda drinks tea", frames=frames, steps=10)
    drawn = FakeEngine(0).generate(params, lambda *_: None).frames
    if not grain:
        return list(drawn)
    random = np.random.default_rng(1)
    shape = (HEIGHT, WIDTH, 3)
    return [
        (np.frombuffer(frame, np.uint8).reshape(shape) + random.normal(0, grain, shape))
        .clip(0, 255)
        .astype(np.uint8)
        .tobytes()
        for frame in drawn
    ]


def _psnr(path: Path, pictures: list[bytes]) -> float:
    errors = []
    with av.open(str(path)) as file:
        for frame, right in zip(file.decode(video=0), pictures, strict=True):
            seen = frame.to_ndarray(format="rgb24").astype(np.float32)
            wanted = np.frombuffer(right, np.uint8).reshape(seen.shape)
            errors.append(float(np.mean((seen - wanted) ** 2)))
    return 10 * math.log10(255**2 / (sum(errors) / len(errors)))
