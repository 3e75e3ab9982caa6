"""`up`, `gateway`, `worker` and `bench engine`: commands that start or become other processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from models.errors import not_installed
from models.settings import check_models, missing_libraries
from server.cli.administer.weights import fetch_missing
from server.cli.options import (
    BROKER,
    ENGINE,
    GATEWAY,
    exit_on_error,
    expand,
    fail,
    read_settings,
    settings_options,
)
from server.cli.output import check_file, check_folder
from server.settings import ServerSettings
from server.supervisor.children import leave_deleted_folder
from server.supervisor.up import supervise
from server.supervisor.workers import run_workers

DEFAULT_FRAMES = 49

bench = typer.Typer(help="Benchmark the engine on this machine.", no_args_is_help=True)


@settings_options(*ENGINE, *GATEWAY, *BROKER, "workers")
def up(
    opens_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser, with the key.")
    ] = False,
) -> None:
    """Run everything on this machine: broker, gateway and workers.

    Without a GPU: `mochi-server up --mock`

    The real engine without a GPU, on tiny weights: `mochi-server up --mock-weights`

    With one: `mochi-server up`, which pulls the weights the first time

    Faster and lossy: `mochi-server up --fp8`
    """
    settings = read_settings()
    _warn_of_ignored(settings)
    with exit_on_error(os.EX_CONFIG):
        check_models(settings)  # before a pull of many GB
        fetch_missing(settings)
        if not settings.is_light_mock:
            _refuse_without_libraries()
        status = supervise(settings, opens_page=opens_page)
    raise typer.Exit(status)


@settings_options(*GATEWAY, *BROKER)
def gateway() -> None:
    """Run a gateway: the HTTP API in front of a shared broker.

    Example: `mochi-server gateway --host 0.0.0.0 --redis-url redis://broker:6379/0`

    With TLS: `mochi-server gateway --tls-cert chain.pem --tls-key key.pem`
    """
    _become("server")


@settings_options(*ENGINE, *BROKER, "workers")
def worker() -> None:
    """Run a worker: one model on one GPU or more, fed by a shared broker.

    Example: `mochi-server worker --device cuda:1 --redis-url redis://broker:6379/0`

    One on each of four GPUs: `mochi-server worker --workers 4`

    With a LoRA at 80 per cent: `mochi-server worker --lora style.safetensors=0.8`
    """
    settings = read_settings()
    _warn_of_ignored(settings)
    if settings.alive_file:  # of a worker that was killed: here, as the imports take long
        Path(settings.alive_file).unlink(missing_ok=True)
    if settings.workers == 1:
        _become("worker")
    _refuse_without_broker(settings)
    raise typer.Exit(run_workers(settings))


@bench.command("engine")
@settings_options(
    *(name for name in ENGINE if not name.startswith("mock")),
    "data_dir",
    weights="As for a worker. [default: dummy, random weights]",
)
def bench_engine(
    frames: Annotated[
        list[int] | None,
        typer.Option(min=1, max=160, help=f"Repeat for more lengths. [default: {DEFAULT_FRAMES}]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, max=75, help="Denoising steps.")] = 30,
    repeats: Annotated[
        int, typer.Option(min=1, help="Warm requests of each length; the median counts.")
    ] = 3,
    compare: Annotated[
        Literal["stock"] | None,
        typer.Option(help="`stock`: also measure the eager pipeline of diffusers."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="Limit GPU memory, to simulate a smaller card."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=expand, help="Write the results as JSON."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(callback=expand, help="Folder for a torch profiler trace of one step."),
    ] = None,
) -> None:
    """Measure each stage of a request in seconds, and the use of the GPU.

    Example: `mochi-server bench engine --frames 49 --frames 160`

    Beside diffusers: `mochi-server bench engine --compare stock -o result.json`
    """
    _refuse_without_libraries()
    settings = read_settings()
    with exit_on_error():
        if output is not None:
            check_file(output)
        if trace is not None:
            check_folder(trace)
    order = {
        "frames": frames or [DEFAULT_FRAMES],
        "steps": steps,
        "repeats": repeats,
        "compare": compare,
        "memory": memory,
        "output": output,
        "trace": trace,
        "data_dir": settings.data_dir,
    }
    _exec("models.mochi.bench", json.dumps(order, default=str))


def _refuse_without_libraries() -> None:
    if missing := missing_libraries():
        fail(str(not_installed(missing)), os.EX_CONFIG)


def _warn_of_ignored(settings: ServerSettings) -> None:
    if settings.ignored:
        names = ", ".join(settings.ignored)
        typer.secho(f"Ignored without real weights: {names}.", err=True, fg="yellow")


def _become(package: str) -> NoReturn:
    _refuse_without_broker(read_settings())
    _exec(package)


def _refuse_without_broker(settings: ServerSettings) -> None:
    if not settings.redis_url:
        fail(
            "MOCHI_REDIS_URL is empty. Set it to the Redis or Valkey that gateways and workers "
            "share, like redis://127.0.0.1:6379/0; or run everything with `mochi-server up`.",
            os.EX_CONFIG,
        )


def _exec(package: str, *flags: str) -> NoReturn:
    """Replace this process, so that signals and the exit status are those of the new one."""
    leave_deleted_folder()
    # -P: the working directory may have a folder named `server`.
    os.execv(sys.executable, [sys.executable, "-P", "-m", package, *flags])  # noqa: S606 (no shell)
