"""What the phases on a GPU share: the device, the figures and the loaded engines."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.errors import MochiError
from models.mochi.bench.measure import Bench
from models.mochi.bench.results import Kernel, Name, Row, Seconds, Setup
from models.mochi.bench.stages import Times
from models.mochi.bench.subjects import load_subjects
from models.mochi.loading.compiling import compile_blocks, keep_on_disk
from models.mochi.synthetic.dummy import DUMMY
from models.settings import EngineSettings
from tests.bench.gpu.runner import Figures

SETTINGS = {"weights": DUMMY, "precision": "bf16", "compile": False}
"""Of the engine, unless the environment or a phase names others."""
SMALL_FRAMES = 1


class Lab:
    """Loads engines when a phase first needs them, and keeps them for the next phases."""

    def __init__(self, out: Path, figures: Figures, *, thorough: bool) -> None:
        """Nothing is loaded yet.

        Args:
            out: folder of traces and of compiled code.
            figures: where figures go.
            thorough: whether to measure 30 steps and three warm requests, not 10 and one.
        """
        self.out = out
        self.on_gpu = torch.cuda.is_available()
        self.backend = "inductor" if self.on_gpu else "eager"
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")
        self.phase = ""
        self._figures = figures
        self._steps, self._repeats = (30, 3) if thorough else (10, 1)
        self._loaded: dict[str, Any] = {}
        self._bench: Bench | None = None
        self._is_compiled = False
        # For the next call. By kernel, as compiled code contains it and its key does not name it.
        keep_on_disk(out / "compiled" / EngineSettings().attention)

    def figure(self, name: str, **values: Any) -> None:
        self._figures.add(self.phase, name, **values)

    def frames(self, count: int) -> int:
        """Fewer without a GPU, where only the phases themselves are tried."""
        return count if self.on_gpu else min(count, SMALL_FRAMES)

    def both(self) -> Bench:
        """Our engine and the stock pipeline, not compiled unless `compiled` did it before."""
        return self.engines(compares=True)

    def compiled(self) -> Bench:
        """The same, with ours compiled."""
        bench = self.both()
        if not self._is_compiled:
            compile_blocks(bench.subjects.ours.core.blocks, self.backend)
            bench.subjects.ours.decoder.compile(self.backend)
            self._is_compiled = True
        return bench

    def engines(
        self, *, compares: bool = False, memory_gib: float | None = None, **settings: Any
    ) -> Bench:
        """Load engines in place of those before, unless they are the same.

        Args:
            compares: whether to load the stock pipeline, too.
            memory_gib: limit on the GPU memory.
            settings: of the engine.
        """
        wanted = {"compares": compares, "memory_gib": memory_gib, **settings}
        if self._bench is None or wanted != self._loaded:
            self.drop()
            self._bench = self._load(settings, compares=compares, memory_gib=memory_gib)
            self._loaded = wanted
        return self._bench

    def drop(self) -> None:
        """Free the memory of the engines."""
        self._bench, self._is_compiled = None, False
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)

    def recover(self) -> bool:
        """Free what an error has left; False if the card refuses all further work."""
        try:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _load(self, others: dict[str, Any], *, compares: bool, memory_gib: float | None) -> Bench:
        settings = EngineSettings()
        named = {name: getattr(settings, name) for name in settings.model_fields_set}
        settings = settings.model_copy(update=SETTINGS | named | others)
        subjects = load_subjects(settings, Path(), compares=compares, memory_gib=memory_gib)
        setup = Setup.of(subjects, compiled=settings.compile, cap_gib=memory_gib)
        self.figure("loaded", **asdict(setup))
        return Bench(subjects, self._tell)

    def _tell(self, row: Row, number: int, times: Times) -> None:
        self.figure(
            "request",
            engine=row.engine,
            frames=row.frames,
            steps=row.steps,
            number=number,
            **asdict(Seconds.median([times])),
            first_step=times.steps[0],
            allocated_gib=row.allocated_gib,
        )

    def measure(
        self, bench: Bench, frames: int, *names: Name, steps: int = 0, repeats: int | None = None
    ) -> None:
        """Measure requests of one length; `steps` and `repeats` overrule what was asked for.

        Raises:
            MochiError: a request failed.
        """
        rows = bench.measure(
            self.frames(frames),
            steps=steps or self._steps,
            repeats=self._repeats if repeats is None else repeats,
            names=names,
        )
        for row in rows:
            self.figure("row", **asdict(row))
        if errors := [f"{row.engine}: {row.error}" for row in rows if row.error]:
            raise MochiError("; ".join(errors))

    def kernels(self, name: str, kernels: Sequence[Kernel]) -> None:
        self.figure(name, kernels=[(each.name[:90], each.calls, each.ms) for each in kernels])
