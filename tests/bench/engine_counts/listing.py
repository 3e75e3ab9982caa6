"""`python -m tests.bench engine-counts`: what can be known about the engine without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from models.mochi.bench.shapes import Request
from models.mochi.memory.profiles import BLOCK, CORE, DENOISING, MODULATION, TEXT, VAE, decoding
from models.mochi.synthetic.dummy import empty_dummy
from tests.bench.engine_counts.counts import (
    BF16,
    PADDED_TOKENS,
    Counts,
    Memory,
    Plan,
    core_on_meta,
    count_memory,
    count_ours,
    count_stock,
)
from tests.bench.engine_counts.graphs import (
    LATENT_FRAMES,
    STEPS,
    TEXT_LENGTHS,
    Graphs,
    count_graphs,
)
from tests.bench.engine_counts.tally import Tally

console = Console(stderr=True)

GB = 1e9


@dataclass(frozen=True)
class Length:
    """The counts at one length.

    Attributes:
        compiled: the blocks of a step; None where PyTorch's compiler gives no plan.
    """

    frames: int
    visual_tokens: int
    text_tokens: int
    stock: Counts
    ours: Counts
    compiled: Plan | None


@dataclass(frozen=True)
class Listing:
    """All counts. Their JSON is what `dataclasses.asdict` returns."""

    torch: str
    diffusers: str
    lengths: list[Length]
    graphs: Graphs
    memory: Memory
    note: str


def run(frames: list[int], output: Path | None) -> None:
    """Count, print tables on standard output, and write JSON to `output` if it is given."""
    listing = count(frames)
    for table in tables(listing):
        Console().print(table)
    if output is not None:
        output.write_text(json.dumps(asdict(listing), indent=2) + "\n")


def count(frames: list[int], blocks: int = 48) -> Listing:
    """Count everything, with `blocks` of the full-size model's 48."""
    lengths: list[Length] = []
    note = ""
    for number in frames:
        request = Request(number)
        console.print(f"{number} frames: operators of stock diffusers and of ours …")
        stock = count_stock(empty_dummy(BF16, blocks), request)
        ours = count_ours(empty_dummy(BF16, blocks), request)
        console.print(f"{number} frames: what the compiler makes of a block …")
        compiled, note = _compiled(request, blocks)
        lengths.append(Length(number, request.visual_tokens, request.tokens, stock, ours, compiled))
    console.print("graphs over texts and videos of many lengths …")
    graphs = count_graphs()
    console.print("memory of the largest request …")
    memory = count_memory(blocks=blocks)
    return Listing(torch.__version__, diffusers.__version__, lengths, graphs, memory, note)


def _compiled(request: Request, blocks: int) -> tuple[Plan | None, str]:
    # PyTorch's internals change from version to version, and the other counts do not need them.
    try:
        from tests.bench.engine_counts.fusion import plan_step  # noqa: PLC0415

        return plan_step(core_on_meta(empty_dummy(BF16, blocks)), request), ""
    except Exception as error:  # noqa: BLE001
        return None, (
            f"The compiler of this PyTorch gives no plan ({type(error).__name__}: "
            f"{error}). That of torch 2.11 and 2.13 does."
        ).partition("\n")[0]


def tables(listing: Listing) -> Iterator[Table]:
    for length in listing.lengths:
        yield _step(length, listing)
        yield _around(length)
    yield _graphs(listing.graphs)
    yield _memory(listing.memory)


def _step(length: Length, listing: Listing) -> Table:
    table = Table(
        title=(
            f"One denoising step, {length.frames} frames: {length.visual_tokens:,} visual tokens, "
            f"{length.text_tokens} of text, both branches, bfloat16\n"
            f"torch {listing.torch}, diffusers {listing.diffusers}, on no device"
        ),
        caption=(
            "Bytes are those of each operator's tensors, read or written once. Compiled: as "
            "PyTorch's compiler plans the blocks for an H100, at fixed shapes. Stock pads the text "
            f"to {PADDED_TOKENS}. {listing.note}"
        ),
    )
    for heading in ("", "stock, eager", "ours, eager", "ours, compiled"):
        table.add_column(heading, justify="right" if heading else "left")
    stock, ours, compiled = length.stock.step, length.ours.step, length.compiled
    rows: list[tuple[str, Callable[[Tally], str], str]] = [
        (
            "kernel launches, at least",
            lambda tally: f"{tally.all_launches:,}",
            f"{compiled.kernels + compiled.externs:,}" if compiled else "?",
        ),
        (
            "… products and attention",
            lambda tally: f"{tally.launches['products'] + tally.launches['attention']:,}",
            f"{compiled.externs:,}" if compiled else "?",
        ),
        ("TFLOP", lambda tally: f"{tally.flops / 1e12:,.1f}", ""),
        (
            "GB of products and attention",
            lambda tally: _gb(tally.bytes["products"] + tally.bytes["attention"]),
            _gb(compiled.extern_bytes) if compiled else "?",
        ),
        ("GB of element-wise work", lambda tally: _gb(tally.bytes["element-wise"]), ""),
        ("GB of reductions and copies", lambda tally: _gb(tally.bytes["rest"]), ""),
        (
            "GB that fusing can save",
            lambda tally: _gb(tally.fusible_bytes),
            _gb(compiled.bytes) if compiled else "?",
        ),
        ("waits for the GPU", lambda tally: str(tally.syncs), str(ours.syncs)),
        ("peak GiB beyond weights", lambda tally: f"{tally.peak / 2**30:.2f}", ""),
    ]
    for name, value, fused in rows:
        table.add_row(name, value(stock), value(ours), fused)
    return table


def _around(length: Length) -> Table:
    table = Table(title=f"Before and after the steps, {length.frames} frames, eager, bfloat16")
    for heading in ("", "launches", "TFLOP", "GB products", "GB others", "waits", "peak GiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, tally in (
        ("stock: text, both prompts", length.stock.text),
        ("ours: text", length.ours.text),
        ("ours: tables of all steps", length.ours.conditioning),
        ("stock: VAE, the whole clip", length.stock.decoding),
        ("ours: VAE, 2 latent frames at a time", length.ours.decoding),
    ):
        table.add_row(
            name,
            f"{tally.all_launches:,}",
            f"{tally.flops / 1e12:,.2f}",
            _gb(tally.bytes["products"] + tally.bytes["attention"]),
            _gb(tally.fusible_bytes),
            str(tally.syncs),
            f"{tally.peak / 2**30:.2f}",
        )
    return table


def _graphs(graphs: Graphs) -> Table:
    table = Table(title="Compiling the blocks over texts and videos of many lengths")
    for heading in ("", "all of"):
        table.add_column(heading)
    for name, values in (
        ("tokens of text", TEXT_LENGTHS),
        ("latent frames", LATENT_FRAMES),
        ("steps", STEPS),
    ):
        table.add_row(name, ", ".join(map(str, values)))
    table.add_section()
    table.add_row("graphs", str(graphs.graphs))
    table.add_row("breaks", str(graphs.breaks))
    return table


def _memory(memory: Memory) -> Table:
    table = Table(
        title="GiB, beside what models/mochi/memory/profiles.py has",
        caption="Work is that of tensors, of 160 frames, 75 steps and two prompts of 256 tokens, "
        "not compiled. Libraries take more for themselves, convolutions above all.",
    )
    table.add_column("")
    table.add_column("counted", justify="right")
    table.add_column("profiles.py", justify="right")
    rows: list[tuple[str, float, float | None]] = [
        ("CORE", memory.core, CORE),
        ("MODULATION", memory.modulation, MODULATION),
        ("BLOCK", memory.block, BLOCK),
        *((f"TEXT {name}", size, TEXT[name]) for name, size in memory.text.items()),
        ("VAE", memory.vae, VAE),
        ("DENOISING", memory.denoising, DENOISING),
        *(
            (f"decoding, chunk {chunk}", size, decoding(chunk))
            for chunk, size in memory.decoding.items()
        ),
    ]
    if memory.stock_decoding is not None:
        rows.append(("stock VAE, float32", memory.stock_decoding, None))
    for name, counted, estimate in rows:
        table.add_row(name, f"{counted:.2f}", "" if estimate is None else f"{estimate:.1f}")
    return table


def _gb(size: int) -> str:
    return f"{size / GB:,.1f}"
