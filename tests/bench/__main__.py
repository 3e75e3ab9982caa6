"""Benchmarks for the developers of this project: `python -m tests.bench COMMAND`.

They are no part of the wheel. Run them in the root of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.output import check_file
from tests.support.commands import exit_on_error, load_settings_with

app = typer.Typer(
    help="Benchmarks of gateway, requests, formats, events, forecasts, clusters; counts of engine "
    "work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write JSON to this file.")]


@app.command()
def gateway(
    connections: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=10_000, help="Number of connections; may be repeated. [default: 32, 64]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each measurement.")] = 5.0,
    output: Output = None,
) -> None:
    """Requests a second, latency and CPU time of the gateway, beside a bare prototype.

    Uses wrk where it is installed.

    Example: `python -m tests.bench gateway --connections 64`
    """
    from tests.bench.gateway import run  # noqa: PLC0415 (`--help` needs none of it)

    with exit_on_error():
        if output is not None:
            check_file(output)
        run(connections or [32, 64], seconds, output)


@app.command()
def request(
    count: Annotated[int, typer.Option(min=1, help="Number of requests, one after the other.")] = 5,
) -> None:
    """Where the time of the default request goes, on mock weights: denoising, video, the rest.

    Example: `python -m tests.bench request --count 10`
    """
    from tests.bench.request import run  # noqa: PLC0415 (`--help` needs none of it)

    with exit_on_error():
        run(count)


@app.command()
def formats(
    frames: Annotated[
        list[int] | None,
        typer.Option(min=1, max=160, help="Number of frames; may be repeated. [default: 52, 160]"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of videos of each kind.")] = 3,
) -> None:
    """CPU time, memory, size and exactness of MP4, WebM and GIF, of the same frames.

    Example: `python -m tests.bench formats --frames 52`
    """
    from tests.bench.formats import run  # noqa: PLC0415 (`--help` needs none of it)

    with exit_on_error():
        run(frames or [52, 160], count)


@app.command()
def events(
    clients: Annotated[int, typer.Option(min=2, max=10_000, help="Number of clients.")] = 200,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests that they follow.")] = 20,
) -> None:
    """What clients that follow requests cost, by events and by polls, with the fake engine.

    Example: `python -m tests.bench events --clients 500`
    """
    from tests.bench.events import run  # noqa: PLC0415 (`--help` needs none of it)

    with exit_on_error():
        run(clients, requests)


@app.command()
def forecast(
    requests: Annotated[
        int, typer.Option(min=2, help="Number of requests, of mixed lengths.")
    ] = 50,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of workers.")] = 2,
    mock_speed: Annotated[
        str, typer.Option(help="Simulated speed, as in MOCHI_MOCK_SPEED.")
    ] = "h100/60",  # an hour becomes a minute
    seed: Annotated[int, typer.Option(help="Seed of lengths and arrivals.")] = 1,
) -> None:
    """How far off `eta_seconds` is, with the fake engine at the simulated speed of a GPU.

    Example: `python -m tests.bench forecast --requests 100 --workers 4`
    """
    from tests.bench.forecast import run  # noqa: PLC0415 (`--help` needs none of it)

    load_settings_with(mock_speed=mock_speed)
    with exit_on_error():
        run(requests, workers, mock_speed, seed)


@app.command()
def cluster(
    workers: Annotated[int, typer.Option(min=1, max=4096, help="Number of workers.")] = 64,
    waiting: Annotated[int, typer.Option(min=100, help="Requests that wait.")] = 10_000,
    clients: Annotated[
        int, typer.Option(min=1, help="Clients of each kind: polls, events, blocking calls.")
    ] = 500,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each round.")] = 20.0,
) -> None:
    """Where one broker and one gateway end: many workers at an H100's pace, with their clients.

    Store, workers' loops and gateway are real; no picture is drawn, and no video encoded.

    Example: `python -m tests.bench cluster --workers 64 --waiting 10000`
    """
    from tests.bench.cluster.run import Sizes, run  # noqa: PLC0415 (`--help` needs none of it)

    with exit_on_error():
        run(Sizes(workers, waiting, clients, seconds))


@app.command("engine-counts")
def engine_counts(
    frames: Annotated[
        list[int] | None,
        typer.Option(min=1, max=160, help="Number of frames; may be repeated. [default: 49]"),
    ] = None,
    output: Output = None,
) -> None:
    """Launches, bytes and waits for the GPU of stock diffusers and of our engine; needs no GPU.

    Counts operators on tensors without data, and measures no time.

    Example: `python -m tests.bench engine-counts --frames 49 --frames 160`
    """
    from tests.bench.engine_counts.listing import run  # noqa: PLC0415 (`--help` needs no torch)

    with exit_on_error():
        if output is not None:
            check_file(output)
        run(frames or [49], output)


if __name__ == "__main__":
    app(prog_name="python -m tests.bench")
