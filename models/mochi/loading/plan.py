"""Settings and a card to a plan: whatever can be refused is refused before anything is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from models.cuda import GIB, choose_allocator
from models.engine import Traits
from models.errors import EngineUnavailableError
from models.mochi.loading import lora
from models.mochi.loading.assemble import Options
from models.mochi.loading.compiling import keep_on_disk
from models.mochi.memory.profiles import STEP_CACHE, Plan, choose_plan
from models.mochi.network import fp8
from models.mochi.network.attention import FIRST_CAPABILITY, choose_kernel
from models.mochi.parts import Dtypes
from models.settings import EngineSettings
from models.weights import folder as weights

PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Of a folder of weights. Without the folder `tokenizer`, say, an empty one would be made up."""

DUMMY = "dummy"
"""Not a folder and not a hub id, but random numbers."""


@dataclass(frozen=True)
class Prepared:
    """What was decided for one card.

    Attributes:
        device: with its index; the current device of this process.
        plan: see `Plan`.
        options: for `assemble`.
        traits: what the engine will say of itself.
        folder: of the weights; None for random numbers.
        loras: to be fused.
    """

    device: torch.device
    plan: Plan
    options: Options
    traits: Traits
    folder: Path | None
    loras: list[lora.Lora]

    @property
    def dtypes(self) -> Dtypes:
        """What each part is loaded as. T5 on a CPU works in float32, where it is fastest."""
        is_reference = self.plan.precision == "reference"
        on_cpu = self.plan.profile.text == "cpu"
        return Dtypes(
            text=torch.float32 if is_reference or on_cpu else torch.bfloat16,
            transformer=torch.bfloat16,
            vae=torch.float32 if is_reference else torch.bfloat16,
        )

    @property
    def weights_stamp(self) -> str:
        """Which weights, LoRAs included: the same on every host that has pulled them."""
        loras = [(_checksum(each.path), each.scale) for each in self.loras]
        return f"{_content(self.folder) if self.folder else ''} {loras}"


def prepare(
    settings: EngineSettings, data_dir: Path, compiled: Path, memory_gib: float | None = None
) -> Prepared:
    """Look at the card and the settings, and choose.

    Args:
        settings: which weights, and where and how they are to run; not those of a mock.
        data_dir: where pulled weights are.
        compiled: where compiled code is kept.
        memory_gib: pretend that the card is no larger.

    Raises:
        EngineUnavailableError: it cannot work; the text names all that is missing, and remedies.
    """
    _check(settings, data_dir)
    choose_allocator()
    try:
        return _choose(settings, data_dir, compiled, memory_gib)
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"{settings.device} cannot be used: {error}\nCheck that the driver is new enough for "
            "this torch, and that nobody else fills the card or holds it alone (nvidia-smi)."
        ) from error


def _choose(
    settings: EngineSettings, data_dir: Path, compiled: Path, memory_gib: float | None
) -> Prepared:
    # With an index, as streams and events are those of the current device.
    device = torch.device("cuda", torch.device(settings.device).index or 0)
    torch.cuda.set_device(device)
    card = torch.cuda.get_device_name(device)
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise EngineUnavailableError(
            f"{card} is too old: Mochi needs bfloat16, which GPUs have from the A100 and the RTX "
            "30 series on (compute capability 8.0). Choose another with MOCHI_DEVICE=cuda:N."
        )
    if settings.fp8:
        fp8.check(device)
    kernel = choose_kernel(settings.attention, device)
    # What is found on disk has the attention kernel in it, and is not told apart by it.
    keep_on_disk(compiled / kernel)
    free = _free(device, memory_gib) - (STEP_CACHE if settings.step_cache else 0)
    plan = choose_plan(free, settings.profile, settings.precision)
    options = Options(
        plan.profile,
        kernel,
        compiles=settings.compile,
        fp8=settings.fp8,
        step_cache=settings.step_cache,
    )
    name = "dummy weights" if settings.weights == DUMMY else "Mochi 1"
    return Prepared(
        device=device,
        plan=plan,
        options=options,
        traits=Traits(name, card, plan.precision, plan.profile.name, options.lossy),
        folder=weights.find(settings.weights, settings.revision, data_dir),
        loras=lora.parse(settings.lora),
    )


def _content(folder: Path) -> str:
    """By the checksums that a pull has noted; else by size and time, which a copy has to keep."""
    if (folder / weights.MANIFEST).is_file():
        return str(weights.read_manifest(folder).files)
    files = filter(Path.is_file, sorted(folder.glob("*/*")))
    stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
    return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _free(device: torch.device, memory_gib: float | None) -> float:
    """GiB that nobody uses; all that this process can have when it is held to `memory_gib`."""
    free, total = torch.cuda.mem_get_info(device)
    if memory_gib is None:
        return free / GIB
    torch.cuda.set_per_process_memory_fraction(min(memory_gib * GIB / total, 1.0), device)
    return min(free / GIB, memory_gib)


def _check(settings: EngineSettings, data_dir: Path) -> None:
    problems = [
        *_device_problems(settings.device),
        *_weights_problems(settings, data_dir),
        *_compiler_problems(settings),
        *_lora_problems(settings),
    ]
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
    """Triton builds what starts its kernels with the compiler that it finds in this way."""
    if not settings.compile or any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return []
    return [
        "Compiling the model for the GPU needs a C compiler, and there is none here: install one "
        "(Debian, Ubuntu: apt install gcc python3-dev), or type --no-compile to run slower."
    ]


def _lora_problems(settings: EngineSettings) -> list[str]:
    """What is in a file is only known when it is fused."""
    try:
        loras = lora.parse(settings.lora)
    except EngineUnavailableError as error:
        return [str(error)]
    return [
        f"There is no file {each.path}, which MOCHI_LORA names."
        for each in loras
        if not each.path.is_file()
    ]
