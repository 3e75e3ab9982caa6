"""Plans how to load the engine for a card: profile, precision, kernel, and which weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from models.cuda import GIB, card, choose_allocator
from models.engine import Traits
from models.errors import EngineBrokenError, EngineUnavailableError
from models.group import Member
from models.mochi.loading import lora, preflight
from models.mochi.loading.assemble import Options
from models.mochi.loading.compiling import keep_on_disk
from models.mochi.memory.profiles import MemoryPlan, Modes, plan_memory
from models.mochi.network import fp8
from models.mochi.network.adapters import NamedLora, buffer_bytes
from models.mochi.network.attention import FIRST_CAPABILITY, choose_kernel
from models.mochi.network.ranks import ALONE, Ranks, join_group
from models.mochi.parts import Dtypes
from models.mochi.synthetic.dummy import DUMMY
from models.settings import EngineSettings
from models.weights import folder as weights

_log = structlog.get_logger()

OWN = 0.5
"""GiB of the card that CUDA takes for this process. An estimate."""

SMALL = 1.0
"""GiB of other processes that are not worth a warning, such as a display's."""


@dataclass(frozen=True)
class LoadPlan:
    """What to load, and how.

    Attributes:
        device: with its index; the current device of this process.
        memory: profile and precision.
        options: for `assemble`.
        traits: of the engine.
        folder: of the weights; None for dummy weights.
        loras: to be fused.
        ranks: the cards that share each video.
        named_loras: that requests may name.
    """

    device: torch.device
    memory: MemoryPlan
    options: Options
    traits: Traits
    folder: Path | None
    loras: list[lora.Lora]
    ranks: Ranks = ALONE
    named_loras: Mapping[str, NamedLora] = field(default_factory=dict)

    @property
    def dtypes(self) -> Dtypes:
        """The dtype of each part.

        On a CPU that multiplies bfloat16, T5 is five times as fast in it; on others it is slower.
        """
        is_slow = self.memory.profile.text == "cpu" and not _cpu_multiplies_bfloat16()
        is_exact = self.memory.precision == "reference"
        return Dtypes(
            text=torch.float32 if is_exact or is_slow else torch.bfloat16,
            transformer=torch.bfloat16,
            vae=torch.bfloat16,
        )

    @property
    def weights_stamp(self) -> str:
        """Identity of the weights and LoRAs, the same on every host that has pulled them."""
        loras = [(_checksum(each.path), each.scale) for each in self.loras]
        return f"{_content(self.folder) if self.folder else ''} {loras}"


def plan_loading(
    settings: EngineSettings,
    data_dir: Path,
    compiled: Path,
    memory_gib: float | None = None,
    *,
    member: Member | None = None,
) -> LoadPlan:
    """Check the settings and the card, and choose.

    Args:
        settings: of an engine with real or dummy weights.
        data_dir: where pulled weights are.
        compiled: where compiled code is kept.
        memory_gib: limit on the GPU memory of this process.
        member: of the group of cards that share each video. The first has the settings' device.

    Raises:
        EngineUnavailableError: the engine cannot work; the text names all problems with remedies.
        EngineBrokenError: see `ranks_of`.
    """
    preflight.check(settings, data_dir)
    named = settings.named_loras
    choose_allocator()
    try:
        device, name = _open_card(settings, member.rank if member else 0)
        kernel = choose_kernel(settings.attention, device)
        free = _free_gib(device, memory_gib)  # before NCCL takes what the profiles of a group count
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"{settings.device} cannot be used: {error}\nCheck that the driver is new enough for "
            "this torch, and that no other process fills the card or holds it exclusively "
            "(nvidia-smi)."
        ) from error
    named_loras = lora.read_named({name: path for name, path in named.items() if path})
    ranks = ranks_of(member, device)
    with _exchange_reported():
        least = ranks.least(free)
    # Compiled code contains the attention kernel, but its key on disk does not name the kernel.
    keep_on_disk(compiled / kernel)
    modes: Modes = {
        "fp8": settings.fp8,
        "step_cache": settings.step_cache > 0,
        "group": member is not None,
        "adapters": buffer_bytes(named_loras.values()) / GIB,
    }
    memory = plan_memory(least, settings.profile, settings.precision, **modes)
    if memory_gib is None:
        _warn_of_others(device, free, memory, settings, modes)
    options = Options(
        memory.profile,
        kernel,
        compiles=settings.compile,
        fp8=settings.fp8,
        step_cache=settings.step_cache,
    )
    model = "dummy weights" if settings.weights == DUMMY else settings.served[0].title
    return LoadPlan(
        device=device,
        memory=memory,
        options=options,
        traits=Traits(model, name, memory.precision, memory.profile.name, options.lossy),
        folder=weights.find(settings.weights, settings.revision, data_dir),
        loras=lora.parse(settings.lora),
        ranks=ranks,
        named_loras=named_loras,
    )


def ranks_of(member: Member | None, device: torch.device) -> Ranks:
    """What a card of a group exchanges, or a single card. Waits for all members to come here.

    Raises:
        EngineBrokenError: the members cannot exchange data; another start may help.
    """
    if member is None:
        return ALONE
    with _exchange_reported():
        return join_group(member.rank, member.size, member.rendezvous, device)


@contextmanager
def _exchange_reported() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineBrokenError(
            f"The processes of the group cannot exchange data: {error}\n"
            "NCCL needs room in /dev/shm: in a container, raise --shm-size. NCCL_DEBUG=WARN logs "
            "the cause."
        ) from error


def _open_card(settings: EngineSettings, rank: int) -> tuple[torch.device, str]:
    """Make the card the current device; return it with its name."""
    # With an index, as streams and events are those of the current device.
    device = card(settings.device, rank)
    torch.cuda.set_device(device)
    name = torch.cuda.get_device_name(device)
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise EngineUnavailableError(
            f"{name} is too old: Mochi needs bfloat16, which GPUs have from the A100 and the RTX "
            "30 series on (compute capability 8.0). Choose another with MOCHI_DEVICE=cuda:N."
        )
    _check_group(settings)
    if settings.fp8:
        fp8.check(device)
    return device, name


def _check_group(settings: EngineSettings) -> None:
    """Refuse cards of several kinds: one plan, and one compiled code, is for all of them."""
    group = [card(settings.device, rank) for rank in range(settings.gpus_per_video)]
    kinds = {
        (torch.cuda.get_device_name(each), torch.cuda.get_device_capability(each)) for each in group
    }
    if len(kinds) > 1:
        names = ", ".join(map(torch.cuda.get_device_name, group))
        raise EngineUnavailableError(
            f"MOCHI_GPUS_PER_VIDEO={settings.gpus_per_video} needs GPUs of one kind, and from "
            f"{settings.device} on there are: {names}. Choose others with MOCHI_DEVICE=cuda:N or "
            "CUDA_VISIBLE_DEVICES."
        )


def _warn_of_others(
    device: torch.device,
    free: float,
    memory: MemoryPlan,
    settings: EngineSettings,
    modes: Modes,
) -> None:
    """Warn if other processes' share of this card has led to a worse plan, which stays."""
    taken = torch.cuda.mem_get_info(device)[1] / GIB - OWN - free
    best = plan_memory(free + max(taken, 0.0), settings.profile, settings.precision, **modes)
    if taken > SMALL and (best.profile, best.precision) != (memory.profile, memory.precision):
        _log.warning(
            "engine.card_is_shared",
            taken_gib=round(taken, 1),
            profile=memory.profile.name,
            precision=memory.precision,
            profile_alone=best.profile.name,
            precision_alone=best.precision,
            remedy="End the other processes on the card (nvidia-smi), then restart this worker.",
        )


def _cpu_multiplies_bfloat16() -> bool:
    """Whether it has AMX or AVX512-BF16."""
    cpu = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())  # noqa: SLF001 (torch has no public function for that)


def _free_gib(device: torch.device, memory_gib: float | None) -> float:
    """Free memory of the card, or less when this process is limited to `memory_gib`."""
    free, total = torch.cuda.mem_get_info(device)
    if memory_gib is None:
        return free / GIB
    torch.cuda.set_per_process_memory_fraction(min(memory_gib * GIB / total, 1.0), device)
    return min(free / GIB, memory_gib)


def _content(folder: Path) -> str:
    """The checksums that a pull has noted; else sizes and times, which a copy has to keep."""
    if (folder / weights.MANIFEST).is_file():
        return str(weights.read_manifest(folder).files)
    files = filter(Path.is_file, sorted(folder.glob("*/*")))
    stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
    return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
