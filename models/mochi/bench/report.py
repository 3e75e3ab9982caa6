"""Benchmark results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.table import Table

from models.mochi.bench.results import Kernel, Result, Row

STAGES = {
    "text": "text",
    "conditioning": "tables",
    "denoising": "denoising",
    "step": "  a step",
    "decoding": "VAE",
    "rest": "the rest",
    "total": "in all",
}
"""Fields of `Seconds` and their labels."""
MAX_KERNEL_NAME = 80


def tables(result: Result) -> Iterator[Table]:
    """For each length, the time of each stage and the use of the card; then the slowest kernels."""
    for frames in dict.fromkeys(row.frames for row in result.rows):
        yield _length_table(result, [row for row in result.rows if row.frames == frames])
    if result.kernels:
        yield _kernel_table(result.kernels)


def _length_table(result: Result, rows: list[Row]) -> Table:
    table = Table(
        title=_title(result, rows[0]),
        caption="\n".join(_notes(result, rows)),
        caption_justify="left",
    )
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.engine}, {'cold' if row.is_cold else 'first'}", justify="right")
        table.add_column(f"warm, {row.runs}", justify="right")
    for stage, label in STAGES.items():
        table.add_row(f"{label}, s", *(cell for row in rows for cell in _seconds(row, stage)))
    table.add_section()
    for label, cell in _usage(result).items():
        pairs = (("", cell(row) if row.warm else "-") for row in rows)
        table.add_row(label, *(text for pair in pairs for text in pair))
    return table


def _title(result: Result, row: Row) -> str:
    return (
        f"{row.frames} frames, {row.steps} steps: {row.visual_tokens:,} + {row.text_tokens} "
        f"tokens, {row.step_tflop:,.4g} TFLOP a step\n{result.machine}\n{result.setup}"
    )


def _usage(result: Result) -> dict[str, Callable[[Row], str]]:
    """How well a warm request uses the card: cells by label."""

    def gib(size: float) -> str:
        return f"{size:.1f}" if result.machine.is_gpu else "-"

    return {
        "TFLOP/s in a step": lambda row: f"{row.tflops:,.4g}",
        f"  of {result.peak_tflops:,.4g}": lambda row: f"{row.share:.1%}",
        "copy alone, s": lambda row: f"{row.copying:.3f}",
        "H.264 of noise alone, s": lambda row: f"{row.encoding:.3f}",
        "peak, GiB": lambda row: gib(row.allocated_gib),
        "  reserved": lambda row: gib(row.reserved_gib),
        "  at rest": lambda row: gib(row.resident_gib),
        "waits for the GPU a step": lambda row: "-" if row.syncs is None else f"{row.syncs:g}",
    }


def _seconds(row: Row, stage: str) -> Iterator[str]:
    for seconds in (row.first, row.warm):
        yield "-" if seconds is None else f"{getattr(seconds, stage):.3f}"


def _notes(result: Result, rows: list[Row]) -> Iterator[str]:
    if result.note:
        yield result.note
    for row in rows:
        for note in filter(None, (row.note, row.error)):
            yield f"{row.engine}: {note}"


def _kernel_table(kernels: list[Kernel]) -> Table:
    table = Table(title="The slowest kernels of one step")
    for heading in ("engine", "kernel", "calls", "ms"):
        table.add_column(heading, justify="right" if heading in {"calls", "ms"} else "left")
    for kernel in kernels:
        name = kernel.name
        if len(name) > MAX_KERNEL_NAME:
            name = f"{name[: MAX_KERNEL_NAME - 1]}…"
        table.add_row(kernel.engine, name, str(kernel.calls), f"{kernel.ms:.3f}")
    return table
