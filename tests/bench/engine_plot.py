"""Draws results of `mochi-server bench engine -o FILE.json` as bars.

For one or more runs: python -m tests.bench.engine_plot OUT.png FILE.json ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STAGES = {
    "text": ("text", "#4c78a8"),
    "conditioning": ("tables", "#72b7b2"),
    "denoising": ("denoising", "#f58518"),
    "decoding": ("VAE decoding", "#54a24b"),
    "rest": ("copy, H.264, the rest", "#bab0ac"),
}
"""Fields of `Seconds` with their labels and colours."""


class PlotError(Exception):
    """No request succeeded."""


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the warm requests as bars, one below the other.

    Args:
        results: the JSON of `Result`s.
        path: of the PNG.

    Raises:
        PlotError: no request succeeded.
    """
    rows = [
        (_label(result, row), row["warm"])
        for result in results
        for row in result["rows"]
        if row["warm"]
    ]
    if not rows:
        raise PlotError("No request succeeded: there is nothing to draw.")
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    starts = [0.0] * len(rows)
    for stage, (label, colour) in STAGES.items():
        lengths = [max(seconds[stage], 0.0) for _, seconds in rows]
        axes.barh(range(len(rows)), lengths, left=starts, color=colour, label=label)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    for position, (_, seconds) in enumerate(rows):
        axes.text(starts[position], position, f" {seconds['total']:.1f} s", va="center")
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(starts) * 1.12)
    axes.set_xlabel("seconds of a warm request")
    axes.set_title(_title(results), fontsize="medium", wrap=True)
    figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize="small")
    figure.savefig(path, format="png", dpi=150)


def _label(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    cap = result["setup"]["cap_gib"]
    capped = f", {cap:g} GiB" if cap else ""
    return f"{row['engine']}, {row['frames']} frames{capped}"


def _title(results: Sequence[Mapping[str, Any]]) -> str:
    result = results[0]
    machine, steps = result["machine"], result["rows"][0]["steps"]
    line = f"{machine['card']}, torch {machine['versions']['torch']}, {steps} steps"
    return f"{line}\n{result['note']}" if result["note"] else line


def main(arguments: Sequence[str]) -> int:
    """Draw the results in files. Exit status: 0, 1 after an error, 2 after wrong arguments."""
    if len(arguments) < 2 or arguments[0] in {"-h", "--help"}:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        plot([json.loads(Path(name).read_text()) for name in arguments[1:]], Path(arguments[0]))
    except (PlotError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
