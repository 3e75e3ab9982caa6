"""Downloads weights from the hub once, and checks them.

Weights lie in `<data_dir>/weights/<org>--<name>/<commit>/`, laid out as on the hub: Mochi as
diffusers saves it, or a classifier for moderation as transformers does. The manifest is written
last, after all files are checked: only a folder with a manifest is ever loaded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import HttpUrl, ValidationError
from rich.filesize import decimal

from models.errors import WeightsError, not_installed
from models.settings import make_private_folder, missing_libraries, sync
from models.weights.folder import (
    COMMIT,
    MANIFEST,
    changed_at,
    commit_folders,
    is_hub_id,
    locate,
    model_folder,
    read_manifest,
)
from models.weights.layout import FLOAT32, indexes, layout_of, unused_shards
from models.weights.manifest import Advance, Manifest, Progress, WeightsFile, find_faults


def verify(folder: Path, progress: Progress) -> list[str]:
    """Check every file of a complete folder, without a network.

    Returns:
        A line for each file that is not as it was pulled.

    Raises:
        WeightsError: the folder has no manifest, or cannot be read.
    """
    manifest = read_manifest(folder)
    with _translate_disk_errors(folder):
        faults = find_faults(folder, manifest.files, "Checking", progress)
    return [f"{name}: {fault}" for name, fault in faults.items()]


def pull(
    weights: str,
    revision: str,
    data_dir: Path,
    *,
    variant: str = FLOAT32,
    progress: Progress,
    say: Callable[[str], None],
) -> Path:
    """Check the files that are here, download the others, and return the folder.

    Without a revision, the commit that is here is kept, whole or in part; where there is none,
    `main` is resolved once. A complete folder needs no network.

    Args:
        weights: a hub id.
        revision: the commit, or empty.
        data_dir: where pulled weights are kept.
        variant: of the transformer, for weights that are not here completely.
        progress: shows the progress of each step.
        say: receives a line for each step.

    Raises:
        WeightsError: the weights are not complete; the next pull keeps complete files.
        EngineUnavailableError: a library that pulls or loads them is not installed.
    """
    if not is_hub_id(weights):
        raise WeightsError(
            f"MOCHI_WEIGHTS={weights} is not a hub id such as genmo/mochi-1-preview: "
            "there is nothing to pull."
        )
    if missing := missing_libraries():  # also those of the loading: it comes 60 GB later
        raise not_installed(missing)
    root = data_dir / "weights"
    _check_hub()
    with _translate_disk_errors(root), exclusive_lock(root, say):
        known = locate(weights, revision, data_dir)
        if known is not None:
            folder, manifest = known, read_manifest(known)
        else:
            offered = _list(weights, revision or _begun_commit(weights, data_dir))
            folder = model_folder(weights, data_dir) / offered.commit
            folder.mkdir(parents=True, exist_ok=True)
            manifest = _choose(folder, offered, variant)
        downloaded = _complete(folder, manifest, progress, say)
        if known is None or downloaded:
            _write_manifest(folder, manifest)
    return folder


def _check_hub() -> None:
    """Set huggingface_hub up, and import it: a gateway's installation lacks it."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        HttpUrl(endpoint)
    except ValidationError:
        raise WeightsError(
            f"HF_ENDPOINT={endpoint} is not an address such as https://huggingface.co. "
            "Correct or unset it."
        ) from None
    # Xet contacts further hosts and keeps its own cache and logs: only for users who ask for it.
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        os.environ.setdefault(name, "1")
    try:
        import models.weights.hub  # noqa: PLC0415, F401 (to see whether it works)
    except ImportError as error:
        raise not_installed(error) from error
    except ValueError as error:  # huggingface_hub reads its variables as it is imported
        raise WeightsError(f"A variable HF_… is not valid: {error}. Correct or unset it.") from None


def _list(hub_id: str, revision: str) -> Manifest:
    """The files of a commit whose names are known."""
    from models.weights import hub  # noqa: PLC0415 (see _check_hub)

    commit, files = hub.list_files(hub_id, revision or "main")
    if not COMMIT.fullmatch(commit) or (revision and commit != revision):
        raise WeightsError(
            f"{hub.endpoint()} answers with commit {commit!r}. Is HF_ENDPOINT right?"
        )
    known = set(filter(layout_of(files).known.fullmatch, files))
    return _only(known, Manifest(hub_id=hub_id, commit=commit, files=files))


def _choose(folder: Path, offered: Manifest, variant: str) -> Manifest:
    """The files that are loaded. Downloads the indexes of shards, unless they are here.

    Others of the offered files are removed: an earlier pull has left them.
    """
    layout = layout_of(offered.files)
    chosen = layout.choose(offered.files, variant)
    if lacking := layout.lacking(chosen):
        otherwise = "" if variant == FLOAT32 else f", or leave --variant {variant} out"
        raise WeightsError(
            f"{offered.hub_id} at commit {offered.commit} lacks {', '.join(lacking)}: "
            f"it is not {layout.what}. Choose another with --weights{otherwise}."
        )
    named_in = _only(indexes(chosen), offered)
    faults = find_faults(folder, named_in.files, "", _silently)
    if faults:
        _download(folder, _only(faults, named_in), _silently)
    chosen -= unused_shards(folder, chosen)
    _remove(folder, offered.files.keys() - chosen)
    return _only(chosen, offered)


def _only(names: Container[str], manifest: Manifest) -> Manifest:
    files = {name: file for name, file in manifest.files.items() if name in names}
    return manifest.model_copy(update={"files": files})


def _silently(_what: str, _total: int) -> Advance:
    return lambda _count: None


def _complete(
    folder: Path, manifest: Manifest, progress: Progress, say: Callable[[str], None]
) -> bool:
    """Download the files that are missing or wrong. Whether there were any."""
    faults = find_faults(folder, manifest.files, "Checking what is here", progress)
    wrong = _only(faults, manifest)
    to_do = f"{decimal(_bytes(wrong.files))} to download" if faults else "complete"
    size = decimal(_bytes(manifest.files))
    say(f"{manifest.hub_id} at commit {manifest.commit}, {size} in {folder}: {to_do}")
    if faults:
        _download(folder, wrong, progress)
    return bool(faults)


def _download(folder: Path, manifest: Manifest, progress: Progress) -> None:
    """Download the files of a manifest, instead of damaged ones, and check them."""
    from models.weights import hub  # noqa: PLC0415 (see _check_hub)

    _remove(folder, manifest.files)
    total, free = _bytes(manifest.files), shutil.disk_usage(folder).free
    if free < total:
        raise WeightsError(
            f"The download needs {decimal(total)}, and {folder} has {decimal(free)} free. "
            "Make room, or choose another place with MOCHI_DATA_DIR=/path."
        )
    advance = progress("Downloading", total)
    hub.download(manifest.hub_id, manifest.commit, manifest.files, folder, advance)
    damaged = find_faults(folder, manifest.files, "Checking the download", progress)
    _remove(folder, damaged)
    if damaged:
        raise WeightsError(
            f"{', '.join(damaged)} came damaged from {hub.endpoint()} and was removed. "
            "Type again: mochi-server weights pull"
        )


def _bytes(files: Mapping[str, WeightsFile]) -> int:
    return sum(file.size for file in files.values())


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files, and the scratch space of a download: a part in it cannot be continued."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if (folder / ".cache").exists():
        shutil.rmtree(folder / ".cache")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it when all files are safe on the disk."""
    for name in manifest.files:
        sync(folder / name)
        sync((folder / name).parent)
    part = folder / f"{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=1) + "\n")
    sync(part)
    part.replace(folder / MANIFEST)
    sync(folder)


def _begun_commit(hub_id: str, data_dir: Path) -> str:
    """The commit of the latest pull that was not completed; empty for none."""
    newest = max(commit_folders(hub_id, data_dir), key=changed_at, default=None)
    return newest.name if newest else ""


@contextmanager
def exclusive_lock(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One pull at a time in a data folder. The lock ends with its process, even a killed one."""
    with suppress(FileExistsError):  # not a folder: the next line says so
        make_private_folder(root.parent)
    root.mkdir(exist_ok=True)
    with (root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another pull is running in {root}: waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _translate_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise WeightsError(
                f"The disk of {folder} is full. Make room and type again: mochi-server weights "
                "pull. It keeps the files that are complete."
            ) from None
        raise WeightsError(
            f"{error.filename or folder} cannot be used: {error.strerror or error}. "
            "Correct that, or choose another place with MOCHI_DATA_DIR=/path."
        ) from None
