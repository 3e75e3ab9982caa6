"""Settings to a loaded engine. Says what is missing, all of it, before any long download."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import MochiPipeline
from safetensors import SafetensorError

from models.engine import Engine
from models.errors import EngineUnavailableError
from models.mochi.engine import MochiEngine
from models.mochi.mock import MockEngine, write_mock_checkpoint
from models.params import HEIGHT, WIDTH
from models.settings import EngineSettings

PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Of a folder of weights. Without the folder `tokenizer`, say, an empty one would be made up."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load(settings: EngineSettings, cache_dir: Path) -> Engine:
    """Load Mochi, real or mock.

    Args:
        settings: which weights, and the device of real ones; mock weights run on the CPU.
        cache_dir: where the mock checkpoint is kept; made if missing. A hub download goes to the
            Hugging Face cache instead.

    Raises:
        EngineUnavailableError: no such device, no such weights; the text says what to type.
    """
    _silence()
    if settings.mock:
        # Threads that wait for each other over so little work cost more than they bring, and up to
        # ten times as much where other processes want the same cores.
        torch.set_num_threads(1)
        return MockEngine(_pipeline(_mock_checkpoint(cache_dir), "", torch.float32))
    _check(settings)
    pipeline = _pipeline(settings.weights, settings.revision, torch.bfloat16)
    return MochiEngine(_move(pipeline, settings.device), WIDTH, HEIGHT)


def _silence() -> None:
    """Keep progress bars, and warnings that quote prompts, out of the worker's log."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _mock_checkpoint(cache_dir: Path) -> Path:
    try:
        return write_mock_checkpoint(cache_dir)
    except (OSError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The mock weights cannot be written to {cache_dir}: {error}"
        ) from error


def _pipeline(weights: str | Path, revision: str, dtype: torch.dtype) -> MochiPipeline:
    try:
        # Only safetensors: a pickle runs whatever code its author put there.
        return MochiPipeline.from_pretrained(
            weights, revision=revision or None, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The weights {weights} cannot be loaded: {error}\n"
            "If a download broke off, start again; if it cannot work here, copy the weights from "
            "another machine and type MOCHI_WEIGHTS=/path/to/folder."
        ) from error


def _move(pipeline: MochiPipeline, device: str) -> MochiPipeline:
    try:
        return pipeline.to(device)
    except torch.OutOfMemoryError as error:
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        raise EngineUnavailableError(
            f"The weights do not fit on {device}: {free:.0f} of its {total:.0f} GiB are free, and "
            "they take 30 GiB before any request. Choose another with MOCHI_DEVICE=cuda:N."
        ) from error


def _check(settings: EngineSettings) -> None:
    problems = [*_device_problems(settings.device), *_weights_problems(settings)]
    if problems:
        hint = "To try the server without a GPU and without weights: mochi-server up --mock"
        raise EngineUnavailableError("\n".join([*problems, hint]))


def _device_problems(device: str) -> list[str]:
    count = torch.cuda.device_count()
    if count == 0:
        return [
            "There is no CUDA device here, and real weights need one: check that `nvidia-smi` "
            "lists a GPU and that torch is a CUDA build "
            f"(python -c 'import torch; print(torch.version.cuda)'; here: {torch.version.cuda})."
        ]
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        return [f"MOCHI_DEVICE={device} does not exist: the last one here is cuda:{count - 1}."]
    return []


def _weights_problems(settings: EngineSettings) -> list[str]:
    weights, folder = settings.weights, Path(settings.weights)
    if folder.is_dir():
        missing = ", ".join(part for part in PARTS if not (folder / part).exists())
        if not missing:
            return []
        return [
            f"The folder MOCHI_WEIGHTS={weights} lacks {missing}: it must hold the weights in the "
            "layout of diffusers, as `hf download genmo/mochi-1-preview` writes them."
        ]
    if not HUB_ID.fullmatch(weights):
        return [
            f"There is no folder MOCHI_WEIGHTS={weights}. "
            "Type MOCHI_WEIGHTS=/path/to/folder, or a hub id such as genmo/mochi-1-preview."
        ]
    if not settings.revision:
        return [
            f"There is no folder of weights: {weights} is a hub id, and needs the commit to load. "
            f"Pick one at https://huggingface.co/{weights}/commits/main and type "
            "MOCHI_REVISION=<its 40 hex digits>; or type MOCHI_WEIGHTS=/path/to/folder."
        ]
    return []
