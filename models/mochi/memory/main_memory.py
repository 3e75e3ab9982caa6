"""Main memory: what loading needs, what this process may take, and one load at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from models.errors import EngineUnavailableError
from models.mochi.memory.profiles import BLOCK, MODULATION, Profile
from models.settings import make_private_folder

_log = structlog.get_logger()

GIB = 2**30
PROCESS = 3.0
"""GiB of Python, torch, CUDA's libraries and buffers. An estimate."""
READ = 19.5
"""GiB of transformer and VAE as they are read, in bfloat16."""


def needed_gib(profile: Profile, text: float, *, reads_all_first: bool = False) -> float:
    """Estimated peak of the main memory while the model is loaded.

    Args:
        profile: some of the weights stay in main memory with it.
        text: GiB of T5. It is read when the transformer is in its place.
        reads_all_first: whether T5 is there before.
    """
    kept = profile.streamed * BLOCK + (0 if profile.keeps_modulation else MODULATION)
    return PROCESS + (READ + text if reads_all_first else max(READ, kept + text))


def check(needed: float, *, insists: bool, root: Path = Path("/")) -> None:
    """Refuse to load what does not fit, as the kernel would kill the process on the way.

    Args:
        needed: see `needed_gib`.
        insists: whether the operator has named the profile: then this only warns.
        root: of the file system that tells the memory.

    Raises:
        EngineUnavailableError: too little memory is available.
    """
    available, limit = available_gib(root)
    if available >= needed:
        return
    if insists:
        _log.warning("engine.little_main_memory", needed_gib=needed, available_gib=available)
        return
    raise EngineUnavailableError(
        f"Loading needs about {needed:.1f} GiB of main memory, and {available:.1f} are available "
        f"({limit}). Allow or free more, or type MOCHI_PRECISION=bf16, which needs up to 9 GiB "
        "less. A profile that is named with MOCHI_PROFILE is loaded all the same."
    )


def available_gib(root: Path = Path("/")) -> tuple[float, str]:
    """GiB that this process may still take, and the file that says so. Only Linux has such files.

    The least of what the machine has and of what each control group above the process allows. Files
    in memory count as available, as the kernel drops them.
    """
    limits = [(float("inf"), "no limit is known"), *_of_machine(root), *_of_groups(root)]
    available, limit = min(limits)
    return available / GIB, limit


def _of_machine(root: Path) -> Iterator[tuple[float, str]]:
    path = root / "proc/meminfo"
    if path.is_file():
        yield 1024 * _values(path)["MemAvailable:"], "MemAvailable in /proc/meminfo"


def _of_groups(root: Path) -> Iterator[tuple[float, str]]:
    """Of version 2, and of version 1's memory controller."""
    path = root / "proc/self/cgroup"
    for line in path.read_text().splitlines() if path.is_file() else ():
        _, controllers, group = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if version_2 else "memory")
        names = ("memory.max", "memory.current", "")
        if not version_2:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        # In a container the group's own folder may be the top one.
        here = top / group.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(top) and (folder / names[0]).is_file():
                yield from _of_group(folder, *names, root)


def _of_group(
    folder: Path, most: str, used: str, prefix: str, root: Path
) -> Iterator[tuple[float, str]]:
    text = (folder / most).read_text().strip()
    if text != "max":
        stats = _values(folder / "memory.stat")
        files = stats.get(f"{prefix}inactive_file", 0) + stats.get(f"{prefix}active_file", 0)
        name = str(Path("/") / (folder / most).relative_to(root))
        yield int(text) - int((folder / used).read_text()) + files, name


def _values(path: Path) -> dict[str, int]:
    """Of a file with a name and a number on each line."""
    if not path.is_file():
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process that names the same file is inside. The kernel frees the lock."""
    make_private_folder(lock.parent)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("engine.waits_for_another_worker_to_load", lock=str(lock))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
