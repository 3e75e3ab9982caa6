"""Measures requests: the time of each stage, the memory, and the use of the card."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from models.cuda import GIB
from models.engine import OnStep
from models.mochi.bench.flops import step_flops
from models.mochi.bench.probes import (
    Recording,
    copy_seconds,
    counted_syncs,
    encode_seconds,
    matmul_peak,
    noise_chunks,
)
from models.mochi.bench.results import Kernel, Name, Row, Seconds
from models.mochi.bench.shapes import Request
from models.mochi.bench.stages import Times, run_ours, run_stock
from models.mochi.bench.subjects import Subjects, console
from models.request.params import GenerateParams

OnRequest = Callable[[Row, int, Times], None]
"""Told of each request as it ends: its row so far, its number from 0, and its times."""

MIN_STEPS = 10
"""The fewest steps of a request, for probes that need no whole one."""
SHORT_CLIP = 7
"""Frames of a request that counts waits, as their number does not depend on the length."""
TRACED_STEP = 4
"""Everything is allocated and compiled by then."""

STOCK_DECODING = 8.2
"""GiB that the stock VAE needs per latent frame of 848x480, without tiles. A test counts it in
float32; under autocast its norms, the largest tensors, are float32, too."""
MARGIN = 1.2
"""For the workspace of convolutions, which `STOCK_DECODING` does not count."""


class Bench:
    """Measures our engine and, if it is loaded, the stock pipeline in turns."""

    def __init__(self, subjects: Subjects, on_request: OnRequest = lambda *_: None) -> None:
        """Measure the peak speed of the device."""
        self.subjects = subjects
        self._on_request = on_request
        self._device = subjects.ours.device
        self._on_gpu = self._device.type == "cuda"
        self._size = (subjects.ours.width, subjects.ours.height)
        self._prompts = 0
        self._warmed_up: set[Name] = set()
        self.peak_tflops = matmul_peak(self._device)

    @property
    def names(self) -> tuple[Name, ...]:
        return ("ours",) if self.subjects.stock is None else ("ours", "stock")

    def measure(
        self, frames: int, *, steps: int = 30, repeats: int = 3, names: Sequence[Name] = ()
    ) -> list[Row]:
        """Engines at one length, in turns, so that heat does not favour one.

        Args:
            frames: of each request.
            steps: of each request.
            repeats: warm requests of each engine, after the first.
            names: of the engines; all if empty.
        """
        names = names or self.names
        rows = {name: self._row(name, frames, steps) for name in names}
        warm: dict[Name, list[Times]] = {name: [] for name in names}
        for number in range(repeats + 1):
            # Back and forth, so that no engine always runs second.
            for name in names if number % 2 == 0 else names[::-1]:
                if rows[name].error:
                    continue
                title = f"request {number} of {repeats}" if number else "the first request"
                console.print(f"{name}: {frames} frames, {title} …")
                rows[name], times = self._timed(name, rows[name])
                if times is None:
                    continue
                self._on_request(rows[name], number, times)
                if number:
                    warm[name].append(times)
                    continue
                is_cold = name not in self._warmed_up
                rows[name] = replace(rows[name], first=Seconds.median([times]), is_cold=is_cold)
                self._warmed_up.add(name)
        return [self._finished(rows[name], warm[name]) for name in names]

    def trace_step(self, name: Name, frames: int, folder: Path) -> list[Kernel]:
        """Record one step of an engine to `folder`; return its slowest kernels."""
        console.print(f"{name}: a trace of one step at {frames} frames …")
        recording = Recording(self._device)

        def watch(done: int) -> None:
            if done == TRACED_STEP - 1:
                recording.start()
            elif done == TRACED_STEP:
                recording.stop()

        self._watch(name, frames, watch, last=TRACED_STEP)
        return recording.save(name, folder / f"{name}-{frames}.json.gz")

    def trace_decoding(self, frames: int, folder: Path) -> list[Kernel]:
        """The same of our decoder, over a clip of noise."""
        console.print(f"ours: a trace of decoding {frames} frames …")
        latents = torch.randn(Request(frames, size=self._size).latent_shape, device=self._device)
        recording = Recording(self._device)
        deque(self.subjects.ours.decoder.decode(latents), maxlen=0)
        recording.start()
        deque(self.subjects.ours.decoder.decode(latents), maxlen=0)
        recording.stop()
        return recording.save("ours", folder / f"decoding-{frames}.json.gz")

    def _row(self, name: Name, frames: int, steps: int) -> Row:
        request = Request(frames, size=self._size)
        text_tokens = len(self.subjects.tokenizer(self._prompt()).input_ids)
        flops = step_flops(self.subjects.config, request.visual_tokens, (0, text_tokens))
        return Row(
            name,
            frames,
            steps,
            request.visual_tokens,
            text_tokens,
            step_tflop=flops / 1e12,
            note=self._set_tiling(request) if name == "stock" else "",
        )

    def _set_tiling(self, request: Request) -> str:
        """Let the stock VAE decode in tiles where the whole clip would not fit."""
        stock = self.subjects.stock
        if stock is None or not self._on_gpu:
            return ""
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0] / GIB
        if STOCK_DECODING * request.latent_frames * MARGIN < free:
            stock.vae.disable_tiling()
            return ""
        stock.vae.enable_tiling()
        return "decodes in tiles: the whole clip would not fit"

    def _params(self, frames: int, steps: int) -> GenerateParams:
        return GenerateParams(prompt=self._prompt(), frames=frames, steps=steps, seed=1)

    def _prompt(self) -> str:
        """A new prompt of the same length, as the embeddings of known prompts are kept."""
        self._prompts += 1
        return f"A red panda drinks tea from a small cup, take {self._prompts:04}"

    def _run(self, name: Name, params: GenerateParams, on_step: OnStep | None = None) -> Times:
        subjects = self.subjects
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            if name == "ours":
                return run_ours(subjects.ours, params, path, on_step)
            assert subjects.stock is not None  # noqa: S101 (`names` has checked)
            return run_stock(
                subjects.stock, params, path, self._size, mixed=subjects.mixed, on_step=on_step
            )

    def _timed(self, name: Name, row: Row) -> tuple[Row, Times | None]:
        """Run one request. The row gets its memory, or the error with which it failed."""
        resident = torch.cuda.memory_allocated(self._device) if self._on_gpu else 0
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            # Redrawn rarely, as that takes a thread of this process.
            with Progress(console=console, transient=True, refresh_per_second=1) as progress:
                bar = progress.add_task("steps", total=row.steps)
                times = self._run(
                    name,
                    self._params(row.frames, row.steps),
                    lambda done, _: progress.update(bar, completed=done),
                )
        except Exception as error:  # noqa: BLE001 (the other engine is measured all the same)
            console.print_exception()
            failure = str(error).partition("\n")[0] or type(error).__name__
        else:
            return self._with_memory(row, resident), times
        # Outside of `except`, where the exception still holds the tensors of the request.
        torch.cuda.empty_cache()
        return replace(row, error=failure), None

    def _with_memory(self, row: Row, resident: int) -> Row:
        if not self._on_gpu:
            return row
        return replace(
            row,
            allocated_gib=torch.cuda.max_memory_allocated(self._device) / GIB,
            reserved_gib=torch.cuda.max_memory_reserved(self._device) / GIB,
            resident_gib=resident / GIB,
        )

    def _finished(self, row: Row, warm: list[Times]) -> Row:
        if row.error or not warm:
            return row
        seconds = Seconds.median(warm)
        tflops = row.step_tflop / seconds.step
        chunks = noise_chunks(row.frames, self._size, self._device)
        return replace(
            row,
            warm=seconds,
            runs=len(warm),
            tflops=tflops,
            share=tflops / self.peak_tflops,
            copying=copy_seconds(chunks, row.frames),
            encoding=encode_seconds(chunks, row.frames, self._size),
            syncs=self._syncs(row.engine) if self._on_gpu else None,
        )

    def _syncs(self, name: Name) -> float:
        """Waits for the GPU per step."""
        marks: list[int] = []
        with counted_syncs() as count:
            self._watch(name, SHORT_CLIP, lambda _: marks.append(count()), last=MIN_STEPS)
        return (marks[-1] - marks[0]) / (len(marks) - 1)

    def _watch(self, name: Name, frames: int, watch: Callable[[int], None], *, last: int) -> None:
        """Call `watch` after each step of a request, and abandon the request after step `last`."""

        def on_step(done: int, _: int) -> None:
            watch(done)
            if done == last:
                raise _Abandoned

        with suppress(_Abandoned):
            self._run(name, self._params(frames, MIN_STEPS), on_step)


class _Abandoned(BaseException):
    """Ends a request early; not an error, so `except Exception` lets it through."""
