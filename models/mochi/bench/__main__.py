"""Measure the engine, on standard output as tables. `mochi-server bench engine` runs this."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from models.errors import MochiError
from models.mochi.bench.measure import Bench
from models.mochi.bench.report import tables
from models.mochi.bench.results import Result, Setup
from models.mochi.bench.subjects import console, load_subjects
from models.mochi.synthetic.dummy import DUMMY
from models.settings import EngineSettings

DEFAULT_FRAMES = 49


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 when a request of our engine or the whole benchmark failed."""
    options = _parser().parse_args(arguments)
    try:
        return 0 if _measure(options) else 1
    except MochiError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _measure(options: argparse.Namespace) -> bool:
    """Return whether all requests of our engine succeeded."""
    lengths = options.frames or [DEFAULT_FRAMES]
    settings = _settings()
    subjects = load_subjects(
        settings, options.data_dir, compares=options.compare == "stock", memory_gib=options.memory
    )
    if subjects.note:
        console.print(subjects.note)
    bench = Bench(subjects, steps=options.steps, repeats=options.repeats)
    rows = [row for frames in lengths for row in bench.measure(frames)]
    compiled = settings.compile and subjects.ours.device.type == "cuda"
    setup = Setup.of(subjects, compiled=compiled, cap_gib=options.memory)
    result = Result.of(subjects, setup, bench.peak_tflops, rows)
    _write(result, options.output)  # at once: the trace may fail, and the rows took long
    if options.trace:
        result = replace(result, kernels=bench.trace(lengths[0], options.trace))
        _write(result, options.output)
    for table in tables(result):
        Console().print(table)
    return not any(row.error for row in rows if row.engine == "ours")


def _settings() -> EngineSettings:
    """From the environment; random weights unless it names others."""
    settings = EngineSettings()
    if "weights" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"weights": DUMMY})


def _write(result: Result, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(asdict(result), indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.mochi.bench",
        description=__doc__,
        epilog="The environment has the engine's settings: MOCHI_PROFILE, MOCHI_PRECISION, …",
    )
    parser.add_argument("--frames", type=int, action="append", help="may be repeated; default: 49")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3, help="warm requests at each length")
    parser.add_argument("--compare", choices=["stock"])
    parser.add_argument("--memory", type=float, metavar="GIB", help="use no more GPU memory")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE.json")
    parser.add_argument("--trace", type=Path, metavar="FOLDER")
    parser.add_argument("--data-dir", type=Path, default=Path(), help="where pulled weights are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
