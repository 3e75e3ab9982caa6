"""The command: a folder for the experiment, the report, and what to look at when it is bad."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.experiment import experiment
from tests.chaos.report import Plan, broken_promises, table


def run(plan: Plan, redis_url: str, output: Path | None) -> bool:
    """Print a table on standard output, and write JSON to `output` if it is given.

    Returns:
        Whether every promise was kept. If not, the folder with all logs stays, and is named.
    """
    errors = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="mochi-chaos-"))
    keep = False
    try:
        report = experiment(plan, folder, redis_url)
        keep = not report.is_clean
    finally:
        if not keep:
            shutil.rmtree(folder)
    Console().print(table(report))
    if output is not None:
        output.write_text(json.dumps(report.as_json(), indent=2, default=float) + "\n")
    for sentence in broken_promises(report):
        errors.print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)
    if keep:
        errors.print(f"Look at {folder}: history.jsonl, faults.json and the logs.", soft_wrap=True)
    return report.is_clean
