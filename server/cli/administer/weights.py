"""`mochi-server weights`: pull, verify and locate weights, with progress on standard error."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from models.errors import WeightsError
from models.weights.folder import absent, find, is_hub_id, locate, pull_command, read_manifest
from models.weights.pull import pull, verify
from server.cli.options import exit_on_error, read_settings, settings_options
from server.cli.output import errors
from worker.settings import WorkerSettings

LINE_SECONDS = 15.0
"""Between two lines where standard error is not a terminal."""
PROBE_SECONDS = 20.0
"""For nvidia-smi: the first call after a boot wakes the driver."""
INTERRUPTED = 130
HUB_ID = "A Hugging Face id. [default: the model's own] [env: MOCHI_WEIGHTS]"

weights = typer.Typer(
    help="Pull, verify and locate the weights of the model.", no_args_is_help=True
)

options = settings_options("models", "weights", "revision", "data_dir", weights=HUB_ID)


@weights.command("pull")
@settings_options("models", "weights", "revision", "variant", "data_dir", weights=HUB_ID)
def pull_command_() -> None:
    """Download the weights and verify them; a second pull keeps the files that are complete.

    Without --revision the latest commit is downloaded and kept. Reads HF_TOKEN and HF_ENDPOINT too.

    Example: `mochi-server weights pull --data-dir /big/disk`

    A classifier for moderation: `mochi-server weights pull --weights Qwen/Qwen3Guard-Gen-0.6B`
    """
    with exit_on_error():
        pull_weights(read_settings())


@weights.command("verify")
@options
def verify_command(
    folder: Annotated[
        Path | None, typer.Argument(help="The weights or a copy. [default: what was pulled]")
    ] = None,
) -> None:
    """Read all weights again, without a network, and name each file that has changed.

    Example: `mochi-server weights verify /models/mochi-1-preview`
    """
    settings = read_settings()
    with exit_on_error():
        if folder is None:
            names = _wanted(settings)
            folder = locate(*names)
            if folder is None:
                raise WeightsError(absent(*names))
        manifest = read_manifest(folder)
        with Meter() as meter, _exit_on_ctrl_c(meter, "Nothing was changed."):
            faults = verify(folder, meter)
            if not faults:
                found = f"{manifest.hub_id} at commit {manifest.commit}"
                meter.say(f"{folder}: {found}, all as pulled.")
                return
        remedy = "Copy these files again from the source of the folder."
        if folder.resolve().is_relative_to(settings.data_dir.resolve()):
            command = pull_command(manifest.hub_id, manifest.commit, settings.data_dir)
            remedy = f"Type: {command}"
        raise WeightsError("\n".join([f"{folder} is damaged:", *faults, remedy]))


@weights.command("path")
@options
def path_command() -> None:
    """Print the folder of the weights, and nothing else, on standard output.

    Example: `export MOCHI_WEIGHTS=$(mochi-server weights path)`
    """
    with exit_on_error():
        names = _wanted(read_settings())
        folder = find(*names)
        if folder is None:
            raise WeightsError(absent(*names))
        typer.echo(folder.resolve())


def pull_weights(settings: WorkerSettings) -> Path:
    """Download the missing files of the weights that the settings name; returns their folder.

    Raises:
        WeightsError: the weights are not complete, and the next pull continues from there; or
            several models are named.
        EngineUnavailableError: the worker's libraries are not installed.
    """
    names = _wanted(settings)
    again = pull_command(*names, settings.variant)
    with Meter() as meter, _exit_on_ctrl_c(meter, f"`{again}` continues from here."):
        folder = pull(*names, variant=settings.variant, progress=meter, say=meter.say)
        meter.say(f"Complete and checked: {folder}")
    return folder


def _wanted(settings: WorkerSettings) -> tuple[str, str, Path]:
    """Weights, revision and data folder. Raises WeightsError if several models are named."""
    slugs = [model.slug for model in settings.served]
    if len(slugs) > 1 and settings.weights == settings.served[0].weights:
        choices = " or ".join(f"--models {slug}" for slug in slugs)
        raise WeightsError(
            f"MOCHI_MODELS={settings.models} names {len(slugs)} models, and each has weights of "
            f"its own. Say which: {choices}."
        )
    return settings.weights, settings.revision, settings.data_dir


@contextmanager
def _exit_on_ctrl_c(meter: Meter, hint: str) -> Iterator[None]:
    """End the process at once: a normal exit waits until the threads have read their files."""

    def stop(_number: int, _frame: object) -> None:
        meter.say(f"Stopped. {hint}")
        meter.__exit__()
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def has_nvidia_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether an NVIDIA GPU is visible. Does not import torch; in doubt, True.

    The driver's file in `/proc` proves nothing: a container sees it without any GPU.
    """
    if any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists():  # dxg: WSL
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run(
            [tool, "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def fetch_missing(settings: WorkerSettings, has_gpu: Callable[[], bool] = has_nvidia_gpu) -> None:
    """Pull the real weights that `up` needs, before it starts anything.

    Raises:
        WeightsError: there is no GPU to use them; else as `pull_weights`.
    """
    if settings.is_mock or not is_hub_id(settings.weights):
        return
    if find(settings.weights, settings.revision, settings.data_dir) is not None:
        return
    if not has_gpu():
        raise WeightsError(
            f"There is no NVIDIA GPU here, so {settings.weights} is not downloaded: check that "
            "`nvidia-smi -L` lists one. Without a GPU, try: mochi-server up --mock"
        )
    pull_weights(settings)


class Meter:
    """Shows progress in bytes: bars on a terminal, else lines. Used in a `with` block."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=errors,
            disable=not errors.is_terminal,
        )
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bars."""
        errors.print(line, soft_wrap=True)

    def __call__(self, what: str, total: int) -> Callable[[int], None]:
        """Begin to show a step of `total` bytes. The result advances it, from any thread."""
        if errors.is_terminal:
            task = self._bars.add_task(what, total=total, visible=total > 0)
            return partial(self._bars.advance, task)
        done = shown = 0
        at = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, shown, at
            with self._lock:
                done += count
                seconds = time.monotonic() - at
                if done >= total or seconds > LINE_SECONDS:
                    speed = decimal(round((done - shown) / max(seconds, 0.001)))
                    self.say(f"{what}: {decimal(done)} of {decimal(total)}, {speed}/s")
                    at, shown = time.monotonic(), done

        return advance
