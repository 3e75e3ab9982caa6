"""Measure the engine, on standard output as tables. `mochi-server bench engine` runs this."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from models.errors import MochiError
from models.mochi.bench.measure import Bench
from models.mochi.bench.report import tables
from models.mochi.bench.results import Result, Setup
from models.mochi.bench.subjects import console, load_subjects
from models.mochi.synthetic.dummy import DUMMY
from models.settings import EngineSettings


@dataclass(frozen=True)
class Order:
    """What to measure: the options of `mochi-server bench engine`, which has defaults and ranges.

    Attributes:
        data_dir: where pulled weights are.
    """

    frames: list[int]
    steps: int
    repeats: int
    compare: str | None
    memory: float | None
    output: str | None
    trace: str | None
    data_dir: str


def main(arguments: Sequence[str]) -> int:
    """Measure what an `Order` in JSON, the only argument, says.

    Returns:
        The exit status: 1 when a request of our engine or the whole benchmark failed.
    """
    order = Order(**json.loads(arguments[0]))
    try:
        return 0 if _measure(order) else 1
    except MochiError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _measure(order: Order) -> bool:
    """Return whether all requests of our engine succeeded."""
    settings = _settings()
    subjects = load_subjects(
        settings,
        Path(order.data_dir),
        compares=order.compare == "stock",
        memory_gib=order.memory,
    )
    if subjects.note:
        console.print(subjects.note)
    bench = Bench(subjects)
    rows = [
        row
        for frames in order.frames
        for row in bench.measure(frames, steps=order.steps, repeats=order.repeats)
    ]
    compiled = settings.compile and subjects.ours.device.type == "cuda"
    setup = Setup.of(subjects, compiled=compiled, cap_gib=order.memory)
    result = Result.of(subjects, setup, bench.peak_tflops, rows)
    _write(result, order.output)  # at once: the trace may fail, and the rows took long
    if order.trace:
        folder, frames = Path(order.trace), order.frames[0]
        kernels = [each for name in bench.names for each in bench.trace_step(name, frames, folder)]
        result = replace(result, kernels=kernels)
        _write(result, order.output)
    for table in tables(result):
        Console().print(table)
    return not any(row.error for row in rows if row.engine == "ours")


def _settings() -> EngineSettings:
    """From the environment; random weights unless it names others."""
    settings = EngineSettings()
    if "weights" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"weights": DUMMY})


def _write(result: Result, path: str | None) -> None:
    if path:
        Path(path).write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
