"""Results as tables and as JSON."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import diffusers
import torch
import transformers
from rich.table import Table

from models.cuda import GIB
from models.mochi.bench.measure import Bench, Kernel, Row
from models.mochi.bench.subjects import Subjects


@dataclass(frozen=True)
class Machine:
    """What it was measured on.

    Attributes:
        is_gpu: False where a small model stood in on the CPU.
        capability: compute capability of the card, such as `9.0`.
        memory_gib: of the card.
        versions: of libraries, by name.
    """

    card: str
    is_gpu: bool
    driver: str
    capability: str
    memory_gib: float
    versions: dict[str, str]

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """Of this process, working on `device`."""
        is_gpu = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if is_gpu else None
        return cls(
            card=properties.name if properties else f"CPU, {platform.machine()}",
            is_gpu=is_gpu,
            driver=_driver() if is_gpu else "",
            capability=f"{properties.major}.{properties.minor}" if properties else "",
            memory_gib=properties.total_memory / GIB if properties else 0.0,
            versions={
                "torch": torch.__version__,
                "cuda": torch.version.cuda or "",
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        )

    def __str__(self) -> str:
        versions = f"torch {self.versions['torch']}, diffusers {self.versions['diffusers']}"
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{self.card}{driver}, {versions}"


@dataclass(frozen=True)
class Setup:
    """How the engine was put together.

    Attributes:
        estimate_gib: what `memory.py` expects the largest request to need; 0 on a CPU.
        cap_gib: how large the card pretended to be; None for as large as it is.
        compiled: whether ours was; the stock pipeline never is.
        lossy: speed modes that change the pictures.
    """

    weights: str
    precision: str
    profile: str
    estimate_gib: float
    cap_gib: float | None
    attention: str
    compiled: bool
    lossy: tuple[str, ...]
    load_seconds: float

    @classmethod
    def of(cls, subjects: Subjects, *, compiled: bool, cap_gib: float | None) -> Setup:
        """Of what was measured."""
        engine, plan = subjects.ours, subjects.plan
        traits = engine.traits
        return cls(
            weights=traits.model,
            precision=traits.precision,
            profile=traits.profile,
            estimate_gib=plan.profile.gib(plan.precision) if plan else 0.0,
            cap_gib=cap_gib,
            attention=engine.kernel,
            compiled=compiled,
            lossy=traits.lossy,
            load_seconds=subjects.load_seconds,
        )

    def __str__(self) -> str:
        return ", ".join(
            filter(
                None,
                (
                    self.weights,
                    self.precision,
                    self.profile,
                    f"attention {self.attention}",
                    "compiled" if self.compiled else "not compiled",
                    *self.lossy,
                    f"capped at {self.cap_gib:g} GiB" if self.cap_gib else "",
                ),
            )
        )


@dataclass(frozen=True)
class Result:
    """All of one measurement. As JSON it is what `dataclasses.asdict` makes of it.

    Attributes:
        when: UTC.
        note: what a reader must know first; `` where there is a GPU.
        peak_tflops: of the fastest product of matrices, measured in the same run.
        kernels: of a traced step.
    """

    when: str
    note: str
    machine: Machine
    setup: Setup
    peak_tflops: float
    rows: list[Row]
    kernels: list[Kernel] = field(default_factory=list)

    @classmethod
    def of(cls, subjects: Subjects, bench: Bench, setup: Setup, rows: list[Row]) -> Result:
        """Put the parts together."""
        return cls(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            note=subjects.note,
            machine=Machine.here(subjects.ours.device),
            setup=setup,
            peak_tflops=bench.peak_tflops,
            rows=rows,
        )


def tables(result: Result) -> Iterator[Table]:
    """For people: at each length where the time goes and how the card is used; the kernels."""
    for frames in dict.fromkeys(row.frames for row in result.rows):
        yield _at_length(result, [row for row in result.rows if row.frames == frames])
    if result.kernels:
        yield _kernels(result.kernels)


STAGES = (
    ("text", "text"),
    ("conditioning", "tables"),
    ("denoising", "denoising"),
    ("step", "  a step"),
    ("decoding", "VAE"),
    ("rest", "the rest"),
    ("total", "in all"),
)
"""Of `Seconds`, and what they are called."""


def _at_length(result: Result, rows: list[Row]) -> Table:
    row = rows[0]
    table = Table(
        title=(
            f"{row.frames} frames, {row.steps} steps: {row.visual_tokens:,} + {row.text_tokens} "
            f"tokens, {row.step_tflop:,.4g} TFLOP a step\n{result.machine}\n{result.setup}"
        ),
        caption="\n".join(_notes(result, rows)),
        caption_justify="left",
    )
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.engine}, {'cold' if row.is_cold else 'first'}", justify="right")
        table.add_column(f"warm, {row.runs}", justify="right")
    for stage, name in STAGES:
        table.add_row(f"{name}, s", *(cell for row in rows for cell in _seconds(row, stage)))
    table.add_section()
    cells: tuple[tuple[str, Callable[[Row], str]], ...] = (
        ("TFLOP/s in a step", lambda row: f"{row.tflops:,.4g}"),
        (f"  of {result.peak_tflops:,.4g}", lambda row: f"{row.share:.1%}"),
        ("copy alone, s", lambda row: f"{row.copying:.3f}"),
        ("H.264 of noise alone, s", lambda row: f"{row.encoding:.3f}"),
        ("peak, GiB", lambda row: _gib(result, row.allocated_gib)),
        ("  reserved", lambda row: _gib(result, row.reserved_gib)),
        ("  at rest", lambda row: _gib(result, row.resident_gib)),
        ("waits for the GPU a step", lambda row: "-" if row.syncs is None else f"{row.syncs:g}"),
    )
    for name, cell in cells:
        pairs = (("", cell(row) if row.warm else "-") for row in rows)
        table.add_row(name, *(text for pair in pairs for text in pair))
    return table


def _seconds(row: Row, stage: str) -> Iterator[str]:
    for seconds in (row.first, row.warm):
        yield "-" if seconds is None else f"{getattr(seconds, stage):.3f}"


def _gib(result: Result, size: float) -> str:
    return f"{size:.1f}" if result.machine.is_gpu else "-"


def _notes(result: Result, rows: list[Row]) -> Iterator[str]:
    if result.note:
        yield result.note
    for row in rows:
        for note in filter(None, (row.note, row.error)):
            yield f"{row.engine}: {note}"


def _kernels(kernels: list[Kernel]) -> Table:
    table = Table(title="Kernels of one step that took most time")
    for heading in ("engine", "kernel", "calls", "ms"):
        table.add_column(heading, justify="right" if heading in {"calls", "ms"} else "left")
    for kernel in kernels:
        name = kernel.name if len(kernel.name) <= 80 else f"{kernel.name[:79]}…"  # noqa: PLR2004
        table.add_row(kernel.engine, name, str(kernel.calls), f"{kernel.ms:.3f}")
    return table


def _driver() -> str:
    """Of the card, as `nvidia-smi` says; `` where it is not installed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
    return said.partition("\n")[0].strip()
