"""The process that `mochi-server bench engine` becomes. Settings of the engine are variables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from models.errors import MochiError
from models.mochi.bench import plot
from models.mochi.bench.measure import Bench
from models.mochi.bench.report import Result, Setup, tables
from models.mochi.bench.subjects import console, load_subjects
from models.mochi.loading.plan import DUMMY
from models.settings import EngineSettings
from tests.bench.engine_counts import listing

FRAMES = 49
"""Unless others are asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or count, print tables on standard output. Exit status 1 with a message on errors."""
    options = _parser().parse_args(arguments)
    options.frames = options.frames or [FRAMES]
    try:
        if options.counts:
            listing.run(options.frames, options.output)
        elif not _measure(options):
            return 1
    except MochiError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _measure(options: argparse.Namespace) -> bool:
    """Whether all requests of ours succeeded."""
    if options.plot:
        plot.check()
    # Random numbers unless weights are asked for: nothing to download, and as fast.
    settings = EngineSettings()
    if "weights" not in settings.model_fields_set:
        settings = settings.model_copy(update={"weights": DUMMY})
    subjects = load_subjects(
        settings, options.data_dir, compares=options.compare == "stock", memory_gib=options.memory
    )
    if subjects.note:
        console.print(subjects.note)
    bench = Bench(subjects, steps=options.steps, repeats=options.repeats)
    rows = [row for frames in options.frames for row in bench.measure(frames)]
    compiled = settings.compile and subjects.ours.device.type == "cuda"
    setup = Setup.of(subjects, compiled=compiled, cap_gib=options.memory)
    result = Result.of(subjects, bench, setup, rows)
    # Before anything else can fail: what was measured took long.
    _write(result, options.output)
    if options.trace:
        result = replace(result, kernels=bench.trace(options.frames[0], options.trace))
        _write(result, options.output)
    for table in tables(result):
        Console().print(table)
    if options.plot:
        plot.plot([asdict(result)], options.plot)
    return not any(row.error for row in rows if row.engine == "ours")


def _write(result: Result, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(asdict(result), indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.mochi.bench",
        description=__doc__,
        epilog="The engine's settings are MOCHI_PROFILE, MOCHI_PRECISION and so on.",
    )
    parser.add_argument("--frames", type=int, action="append", help="may be repeated; default: 49")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3, help="warm requests at each length")
    parser.add_argument("--compare", choices=["stock"])
    parser.add_argument("--memory", type=float, metavar="GIB", help="pretend the card is so large")
    parser.add_argument("--counts", action="store_true", help="count, without a GPU")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--trace", type=Path, metavar="FOLDER")
    parser.add_argument("--data-dir", type=Path, default=Path(), help="where pulled weights are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
