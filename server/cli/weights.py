"""Weights for the command line: pull and check them with progress, and say where they are."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from models.errors import WeightsError
from models.weights.folder import absent, find, is_hub_id, locate, pull_command, read_manifest
from models.weights.pull import pull, verify
from worker.settings import WorkerSettings

BAR_SECONDS = 0.1
LINE_SECONDS = 15.0


PROBE_SECONDS = 20.0
"""For nvidia-smi: the first call after a boot wakes the driver."""


def pull_weights(settings: WorkerSettings) -> Path:
    """Fetch what is missing of the weights that the settings name. Their folder.

    Raises:
        WeightsError: they are not complete; the next pull goes on from there.
        EngineUnavailableError: the worker's libraries are not installed.
    """
    with Meter() as meter:
        try:
            folder = pull(
                settings.weights,
                settings.revision,
                settings.data_dir,
                progress=meter,
                say=meter.say,
            )
        except KeyboardInterrupt:
            command = pull_command(settings.weights, settings.revision, settings.data_dir)
            meter.say(f"Stopped. `{command}` goes on from here.")
            raise
        meter.say(f"Complete and checked: {folder}")
    return folder


def verify_weights(settings: WorkerSettings, folder: Path | None) -> None:
    """Read all weights again; those of the settings where no folder is given.

    Raises:
        WeightsError: there are none, or no manifest; or a file is not as it was pulled.
    """
    folder = folder or locate(settings.weights, settings.revision, settings.data_dir)
    if folder is None:
        raise WeightsError(absent(settings.weights, settings.revision, settings.data_dir))
    manifest = read_manifest(folder)
    with Meter() as meter:
        faults = verify(folder, meter)
        if not faults:
            meter.say(f"{folder}: {manifest.hub_id} at commit {manifest.commit}, all as pulled.")
            return
    if folder.resolve().is_relative_to(settings.data_dir.resolve()):
        remedy = f"Type: {pull_command(manifest.hub_id, manifest.commit, settings.data_dir)}"
    else:
        remedy = "Copy these files again from where the folder came from."
    raise WeightsError("\n".join([f"{folder} is damaged:", *faults, remedy]))


def weights_folder(settings: WorkerSettings) -> Path:
    """Where the weights are that the settings name.

    Raises:
        WeightsError: nowhere; the text says what to type.
    """
    folder = find(settings.weights, settings.revision, settings.data_dir)
    if folder is None:
        raise WeightsError(absent(settings.weights, settings.revision, settings.data_dir))
    return folder.resolve()


def has_nvidia_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU is in reach, asked without torch. It errs towards yes.

    The driver's own file in `/proc` says nothing: a container sees it without any GPU.
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
    """Before all is started on one machine: pull the real weights that it will want.

    Raises:
        WeightsError: there is no GPU to use them, or they are not complete.
        EngineUnavailableError: the worker's libraries are not installed.
    """
    if settings.mock or settings.engine != "mochi" or not is_hub_id(settings.weights):
        return
    if find(settings.weights, settings.revision, settings.data_dir) is not None:
        return
    if not has_gpu():
        raise WeightsError(
            f"There is no NVIDIA GPU here, so {settings.weights} is not fetched: check that "
            "`nvidia-smi -L` lists one. Without a GPU, try: mochi-server up --mock"
        )
    pull_weights(settings)


class Meter:
    """Shows bytes. Used in a `with`; told by any thread, but by one at a time."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[float, int]] = {}
        """When each was shown last, and with how many bytes."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `what`."""
        now = time.monotonic()
        if what not in self._shown:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done)
            self._shown[what] = now, done
            return
        at, before = self._shown[what]
        if done < total and now - at < (LINE_SECONDS if self._bars.disable else BAR_SECONDS):
            return
        self._shown[what] = now, done
        if not self._bars.disable:
            self._bars.update(self._tasks[what], completed=done, total=total)
        elif done > before:
            speed = (done - before) / max(now - at, 0.001)
            self.say(f"{what}: {decimal(done)} of {decimal(total)}, {decimal(round(speed))}/s")
