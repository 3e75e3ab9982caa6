"""Refuses settings that cannot work on this machine, before anything is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from models.cuda import driver_cuda
from models.errors import EngineUnavailableError
from models.mochi.loading import lora
from models.mochi.synthetic.dummy import DUMMY
from models.settings import EngineSettings
from models.weights import folder as weights

FIRST_DRIVER = {12: 525, 13: 580}
"""By major version of CUDA: https://docs.nvidia.com/deploy/cuda-compatibility/."""
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Subfolders of the weights. Without `tokenizer`, transformers would make up an empty one."""


def check(settings: EngineSettings, data_dir: Path) -> None:
    """Check the settings of an engine with real or dummy weights.

    Raises:
        EngineUnavailableError: the text names all problems, each with its remedy.
    """
    problems = [
        *_device_problems(settings.device, settings.gpus_per_video),
        *_weights_problems(settings, data_dir),
        *_compiler_problems(settings),
        *_lora_problems(settings),
    ]
    if problems:
        hint = "To try the server without a GPU and without weights: mochi-server up --mock"
        raise EngineUnavailableError("\n".join([*problems, hint]))


def _device_problems(device: str, cards: int) -> list[str]:
    if problem := _driver_problem():
        return [problem]
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
    if index + cards > count:
        return [
            f"MOCHI_GPUS_PER_VIDEO={cards} does not fit: from {device} on there are "
            f"{count - index} GPUs."
        ]
    return []


def _driver_problem() -> str:
    """Of a driver whose major version of CUDA is older than torch's: minor ones do not matter."""
    built_for, driver = torch.version.cuda, driver_cuda()
    if built_for is None or driver is None:
        return ""
    major = int(built_for.partition(".")[0])
    if driver[0] >= major:
        return ""
    first = FIRST_DRIVER.get(major)
    needed = f"the driver {first} or later" if first else "a newer driver"
    return (
        f"The NVIDIA driver here works up to CUDA {driver[0]}.{driver[1]}, and torch is built for "
        f"CUDA {built_for}, which needs {needed}. Update the driver, or install a torch that is "
        f"built for CUDA {driver[0]}."
    )


def _weights_problems(settings: EngineSettings, data_dir: Path) -> list[str]:
    if settings.weights == DUMMY:
        return []
    folder = weights.find(settings.weights, settings.revision, data_dir)
    if folder is None:
        return [weights.absent(settings.weights, settings.revision, data_dir)]
    missing = ", ".join(part for part in PARTS if not (folder / part).exists())
    if not missing:
        return []
    return [
        f"The folder MOCHI_WEIGHTS={settings.weights} lacks {missing}: it must hold the weights in "
        "the layout of diffusers, as `mochi-server weights pull` writes them."
    ]


def _compiler_problems(settings: EngineSettings) -> list[str]:
    # Triton looks for the compiler of its kernel launchers in the same places.
    if not settings.compile or any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return []
    return [
        "Compiling the model for the GPU needs a C compiler, and there is none here: install one "
        "(Debian, Ubuntu: apt install gcc python3-dev), or type --no-compile to run slower."
    ]


def _lora_problems(settings: EngineSettings) -> list[str]:
    """Missing files; their contents are checked when they are fused."""
    try:
        loras = lora.parse(settings.lora)
    except EngineUnavailableError as error:
        return [str(error)]
    missing = [
        f"There is no file {each.path}, which MOCHI_LORA names."
        for each in loras
        if not each.path.is_file()
    ]
    for name, path in settings.named_loras.items():
        if path is None:
            missing.append(f"MOCHI_LORAS names no file for {name}: write {name}=FILE.safetensors.")
        elif not path.is_file():
            missing.append(f"There is no file {path}, which MOCHI_LORAS names.")
    return missing
