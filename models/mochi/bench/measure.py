"""`mochi-server bench engine`: how long a request takes, where, and how well it uses the card."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from models.cuda import GIB
from models.engine import Clip, OnStep
from models.mochi.bench.flops import step_flops
from models.mochi.bench.shapes import Request
from models.mochi.bench.stages import Times, run_ours, run_stock, wait
from models.mochi.bench.subjects import Subjects, console
from models.mochi.memory.host_copy import to_host
from models.mochi.parts import Dtypes
from models.mochi.synthetic.dummy import empty_dummy
from models.params import GenerateParams
from models.video import encode
from tests.bench.engine_counts.counts import count_stock_decoding

Name = Literal["ours", "stock"]

LEAST_STEPS = 10
"""That a request may have: for looks that need no whole one."""

MARGIN = 1.2
"""Of the stock VAE's memory: what its convolutions take for themselves is not counted."""

TRACED = 4
"""The step that is recorded: by then nothing is new."""

PRODUCTS = {
    "cuda": ((8192, 8192, 8192), (16384, 3072, 9216), (16384, 8192, 3072), (4096, 4096, 16384)),
    "cpu": ((512, 512, 512),),
}
"""Rows, inner and outer columns of the products that a card's peak is measured with."""


@dataclass(frozen=True)
class Seconds:
    """One request; a median of several, where there are."""

    total: float
    text: float
    conditioning: float
    denoising: float
    step: float
    decoding: float
    rest: float

    @classmethod
    def of(cls, runs: list[Times]) -> Seconds:
        """The median of each stage."""
        return cls(
            **{
                name: statistics.median(getattr(run, name) for run in runs)
                for name in cls.__dataclass_fields__
            }
        )


@dataclass(frozen=True)
class Row:
    """One engine at one length.

    Attributes:
        engine: whose.
        frames: asked for; those of the model are the next 6k + 1.
        steps: of denoising.
        visual_tokens, text_tokens: of the transformer; the negative prompt has none.
        first: the first request of that length, with whatever has to be compiled for it.
        is_cold: whether it was the first of all since the start.
        warm: the median of those after it.
        runs: how many those are.
        step_tflop: TFLOP of a denoising step, by the formula of `flops.py`.
        tflops: TFLOP a second in the median step.
        share: that, of the largest measured for a product of matrices.
        copying: seconds to bring all frames to main memory, alone.
        encoding: seconds to encode as many frames, alone; of noise, the hardest there is.
        allocated_gib, reserved_gib: most memory at once during a warm request; with both engines
            loaded, the weights of both.
        resident_gib: allocated between requests.
        syncs: waits for the GPU in a step; None where there is none.
        note: what is special about this row.
        error: why there are no figures.
    """

    engine: Name
    frames: int
    steps: int
    visual_tokens: int
    text_tokens: int
    first: Seconds | None = None
    is_cold: bool = False
    warm: Seconds | None = None
    runs: int = 0
    step_tflop: float = 0.0
    tflops: float = 0.0
    share: float = 0.0
    copying: float = 0.0
    encoding: float = 0.0
    allocated_gib: float = 0.0
    reserved_gib: float = 0.0
    resident_gib: float = 0.0
    syncs: float | None = None
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Kernel:
    """In a trace of one step.

    Attributes:
        ms: in all calls together.
    """

    engine: Name
    name: str
    calls: int
    ms: float


class Bench:
    """Measures subjects, in turns."""

    def __init__(self, subjects: Subjects, *, steps: int, repeats: int) -> None:
        """Get ready.

        Args:
            subjects: what to measure.
            steps: of each request.
            repeats: warm requests of each subject and length.
        """
        self._subjects = subjects
        self._steps = steps
        self._repeats = repeats
        self._device = subjects.ours.device
        self._size = (subjects.ours.width, subjects.ours.height)
        self._requests = 0
        self._has_run: set[Name] = set()
        self.peak_tflops = matmul_peak(self._device)

    @property
    def names(self) -> tuple[Name, ...]:
        """Of the subjects."""
        return ("ours",) if self._subjects.stock is None else ("ours", "stock")

    def measure(self, frames: int) -> list[Row]:
        """All subjects at one length, in turns, so that heat does not favour one."""
        rows = {name: self._row(name, frames) for name in self.names}
        warm: dict[Name, list[Times]] = {name: [] for name in self.names}
        for number in range(self._repeats + 1):
            # Back and forth: none always comes after the other.
            for name in self.names if number % 2 == 0 else self.names[::-1]:
                if rows[name].error:
                    continue
                title = f"request {number} of {self._repeats}" if number else "the first request"
                console.print(f"{name}: {frames} frames, {title} …")
                rows[name], times = self._timed(name, rows[name])
                if times is None:
                    continue
                if number:
                    warm[name].append(times)
                    continue
                is_cold = name not in self._has_run
                rows[name] = replace(rows[name], first=Seconds.of([times]), is_cold=is_cold)
                self._has_run.add(name)
        return [self._finished(rows[name], warm[name]) for name in self.names]

    def trace(self, frames: int, folder: Path) -> list[Kernel]:
        """Record one step of each subject to `folder`; the kernels that took most time."""
        folder.mkdir(parents=True, exist_ok=True)
        kernels: list[Kernel] = []
        for name in self.names:
            console.print(f"{name}: a trace of one step at {frames} frames …")
            recording = self._record(name, frames)
            recording.export_chrome_trace(str(folder / f"{name}-{frames}.json.gz"))
            kernels += _largest(name, recording, on_gpu=self._device.type == "cuda")
        return kernels

    def _row(self, name: Name, frames: int) -> Row:
        shape = self._shape(frames)
        row = Row(
            name,
            frames,
            self._steps,
            shape.visual_tokens,
            len(self._subjects.tokenizer(self._prompt()).input_ids),
        )
        flops = step_flops(self._subjects.config, row.visual_tokens, (0, row.text_tokens))
        note = self._set_tiling(shape) if name == "stock" else ""
        return replace(row, step_tflop=flops / 1e12, note=note)

    def _shape(self, frames: int) -> Request:
        return Request(frames, size=self._size)

    def _set_tiling(self, shape: Request) -> str:
        """Have the stock VAE decode in tiles where the whole clip would not fit."""
        stock = self._subjects.stock
        if stock is None or self._device.type != "cuda":
            return ""
        torch.cuda.empty_cache()
        empty = empty_dummy(Dtypes(vae=stock.vae.dtype), blocks=1)
        latents = torch.empty(shape.latent_shape, device="meta")
        free = torch.cuda.mem_get_info(self._device)[0]
        if count_stock_decoding(empty, latents) * MARGIN < free:
            stock.vae.disable_tiling()
            return ""
        stock.vae.enable_tiling()
        return "decodes in tiles: the whole clip would not fit"

    def _params(self, frames: int, steps: int) -> GenerateParams:
        return GenerateParams(prompt=self._prompt(), frames=frames, steps=steps, seed=1)

    def _prompt(self) -> str:
        """A new one each time, since known ones are not encoded again; all of one length."""
        self._requests += 1
        return f"A red panda drinks tea from a small cup, take {self._requests:04}"

    def _run(self, name: Name, params: GenerateParams, on_step: OnStep | None = None) -> Times:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            if name == "ours":
                return run_ours(self._subjects.ours, params, path, on_step)
            assert self._subjects.stock is not None  # noqa: S101 (`names` has looked)
            return run_stock(
                self._subjects.stock,
                params,
                path,
                self._size,
                mixed=self._subjects.mixed,
                on_step=on_step,
            )

    def _timed(self, name: Name, row: Row) -> tuple[Row, Times | None]:
        """One request; what it says when it fails is in the row."""
        on_gpu = self._device.type == "cuda"
        resident = torch.cuda.memory_allocated(self._device) if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            # Seldom redrawn, as that takes a thread of this process.
            with Progress(console=console, transient=True, refresh_per_second=1) as progress:
                bar = progress.add_task("steps", total=row.steps)
                times = self._run(
                    name,
                    self._params(row.frames, row.steps),
                    lambda done, _: progress.update(bar, completed=done),
                )
        except Exception as error:  # noqa: BLE001 (what the others say is worth having all the same)
            console.print_exception()
            failure = str(error).partition("\n")[0] or type(error).__name__
        else:
            if on_gpu:
                row = replace(
                    row,
                    allocated_gib=torch.cuda.max_memory_allocated(self._device) / GIB,
                    reserved_gib=torch.cuda.max_memory_reserved(self._device) / GIB,
                    resident_gib=resident / GIB,
                )
            return row, times
        # The exception held the tensors of the failed request; it is gone, and they can be too.
        torch.cuda.empty_cache()
        return replace(row, error=failure), None

    def _finished(self, row: Row, warm: list[Times]) -> Row:
        if row.error or not warm:
            return row
        seconds = Seconds.of(warm)
        tflops = row.step_tflop / seconds.step
        chunks = [
            torch.randint(256, (7, *self._size[::-1], 3), dtype=torch.uint8, device=self._device)
            for _ in range(-(-row.frames // 7))
        ]
        return replace(
            row,
            warm=seconds,
            runs=len(warm),
            tflops=tflops,
            share=tflops / self.peak_tflops,
            copying=_copying(chunks, row.frames),
            encoding=_encoding(chunks, row.frames, self._size),
            syncs=self._syncs(row.engine),
        )

    def _syncs(self, name: Name) -> float | None:
        """Waits for the GPU in a step of a short clip, whose length makes no difference."""
        if self._device.type != "cuda":
            return None
        marks: list[int] = []
        with counted_syncs() as count:
            self._watch(name, 7, lambda _: marks.append(count()), upto=LEAST_STEPS)
        return (marks[-1] - marks[0]) / (len(marks) - 1)

    def _record(self, name: Name, frames: int) -> profile:
        on_gpu = self._device.type == "cuda"
        recording = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            acc_events=True,  # there is one cycle only; otherwise torch 2.11 warns of several
        )

        def watch(done: int) -> None:
            wait(self._device)
            if done == TRACED - 1:
                recording.start()
            elif done == TRACED:
                recording.stop()

        self._watch(name, frames, watch, upto=TRACED)
        return recording

    def _watch(self, name: Name, frames: int, watch: Callable[[int], None], *, upto: int) -> None:
        """Run a request up to a step and abandon it there; `watch` is told of each one done."""

        def on_step(done: int, _: int) -> None:
            watch(done)
            if done == upto:
                raise _Enough

        with suppress(_Enough):
            self._run(name, self._params(frames, LEAST_STEPS), on_step)


class _Enough(BaseException):
    """Nothing went wrong, though nothing is finished."""


@contextmanager
def counted_syncs() -> Iterator[Callable[[], int]]:
    """Count PyTorch's waits for the GPU inside. It sees those of its own operators only."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchronizing" in str(warning.message) for warning in caught)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def matmul_peak(device: torch.device, repeats: int = 10) -> float:
    """TFLOP a second of the fastest of a few products: bfloat16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    best = 0.0
    for rows, inner, columns in PRODUCTS[device.type]:
        # Not zeros: those draw less power, and so run at a higher clock.
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        for _ in range(3):
            left @ right
        wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            left @ right
        wait(device)
        seconds = (time.perf_counter() - started) / repeats
        best = max(best, 2 * rows * inner * columns / seconds / 1e12)
    return best


def _copying(chunks: list[Tensor], frames: int) -> float:
    wait(chunks[0].device)
    started = time.perf_counter()
    for _ in to_host(iter(chunks), frames):
        pass
    return time.perf_counter() - started


def _encoding(chunks: list[Tensor], frames: int, size: tuple[int, int]) -> float:
    pictures = list(to_host(iter(chunks), frames))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        encode(Clip(*size, iter(pictures)), 16.0, Path(folder) / "video.mp4")
        return time.perf_counter() - started


def _largest(name: Name, recording: profile, *, on_gpu: bool, count: int = 20) -> list[Kernel]:
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(
        recording.key_averages(), key=lambda event: getattr(event, attribute), reverse=True
    )
    return [
        Kernel(name, event.key, event.count, getattr(event, attribute) / 1000)
        for event in events[:count]
    ]
