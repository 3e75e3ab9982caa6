"""The results of a benchmark, as they are written to JSON."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Literal

import diffusers
import torch
import transformers

from models.cuda import GIB
from models.mochi.bench.stages import Times
from models.mochi.bench.subjects import Subjects

Name = Literal["ours", "stock"]


@dataclass(frozen=True)
class Seconds:
    """Duration of each stage of a request, or the medians of several requests; see `Times`."""

    total: float
    text: float
    conditioning: float
    denoising: float
    step: float
    decoding: float
    rest: float

    @classmethod
    def median(cls, runs: Sequence[Times]) -> Seconds:
        medians = {
            each.name: statistics.median(getattr(run, each.name) for run in runs)
            for each in fields(cls)
        }
        return cls(**medians)


@dataclass(frozen=True)
class Row:
    """One engine at one number of frames.

    Attributes:
        frames: of the request; the model makes the next 6k + 1.
        steps: of denoising.
        visual_tokens, text_tokens: of the transformer. The negative prompt has no tokens.
        first: the first request of this length, including compilation.
        is_cold: whether `first` was the first request of the process.
        warm: the median of the requests after the first.
        runs: number of requests in `warm`.
        step_tflop: TFLOP of a denoising step, by the formula of `flops.py`.
        tflops: TFLOP per second in the median step.
        share: `tflops` as a share of the fastest matrix product that was measured.
        copying: seconds to copy all frames to main memory, and nothing else.
        encoding: seconds to encode as many frames of noise, the hardest input of H.264.
        allocated_gib, reserved_gib: peak during a warm request. With both engines loaded, it
            includes the weights of both.
        resident_gib: allocated between requests.
        syncs: waits for the GPU per step; None on a CPU.
        note: what is special about this row.
        error: why figures are missing.
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
    """A kernel in the trace of one step; `ms` is the time of all its calls."""

    engine: Name
    name: str
    calls: int
    ms: float


@dataclass(frozen=True)
class Machine:
    """Where the benchmark ran.

    Attributes:
        is_gpu: False where a small model ran on the CPU instead.
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
    def of(cls, device: torch.device) -> Machine:
        is_gpu = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if is_gpu else None
        return cls(
            card=properties.name if properties else f"CPU, {platform.machine()}",
            is_gpu=is_gpu,
            driver=_driver_version() if is_gpu else "",
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
    """How the engine was assembled.

    Attributes:
        estimate_gib: estimated peak of the longest request (`memory/profiles.py`); 0 on a CPU.
        cap_gib: GPU memory that the benchmark was limited to; None without a limit.
        compiled: whether our engine was; the stock pipeline never is.
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
        traits = subjects.ours.traits
        return cls(
            weights=traits.model,
            precision=traits.precision,
            profile=traits.profile,
            estimate_gib=subjects.memory.peak_gib if subjects.memory else 0.0,
            cap_gib=cap_gib,
            attention=subjects.ours.kernel,
            compiled=compiled,
            lossy=traits.lossy,
            load_seconds=subjects.load_seconds,
        )

    def __str__(self) -> str:
        words = (
            self.weights,
            self.precision,
            self.profile,
            f"attention {self.attention}",
            "compiled" if self.compiled else "not compiled",
            *self.lossy,
            f"capped at {self.cap_gib:g} GiB" if self.cap_gib else "",
        )
        return ", ".join(filter(None, words))


@dataclass(frozen=True)
class Result:
    """One run of the benchmark. Its JSON is what `dataclasses.asdict` returns.

    Attributes:
        when: UTC, ISO 8601.
        note: what a reader must know first; empty on a GPU.
        peak_tflops: of the fastest matrix product, measured in the same run.
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
    def of(cls, subjects: Subjects, setup: Setup, peak_tflops: float, rows: list[Row]) -> Result:
        return cls(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            note=subjects.note,
            machine=Machine.of(subjects.ours.device),
            setup=setup,
            peak_tflops=peak_tflops,
            rows=rows,
        )


def _driver_version() -> str:
    """From `nvidia-smi`; empty where it is not installed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    output = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
    return output.partition("\n")[0].strip()
