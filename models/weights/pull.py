"""Weights in a folder: fetched from the hub once, checked, and found again without a network.

What is pulled lies in `<data_dir>/weights/<org>--<name>/<commit>/`, as it does on the hub: a Mochi
in diffusers' layout, or a classifier, for moderation, in that of transformers. The manifest in it
is written last: a folder that has one is complete, and no other is ever loaded. A draft (`*.part`)
is what a pull that broke off has left, and where the next one goes on.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from rich.filesize import decimal

from models.errors import WeightsError, not_installed
from models.weights.folder import (
    _COMMIT,
    MANIFEST,
    PART,
    _changed_at,
    _commits,
    _model_folder,
    _size,
    is_hub_id,
    locate,
    read_manifest,
)
from models.weights.manifest import Manifest, WeightsFile

if TYPE_CHECKING:
    from models.weights.hub import Hub

AT_ONCE = 8
"""Files that are fetched or read at the same time; huggingface_hub takes as many."""
STOP_SECONDS = 1.0
"""How long threads are waited for when one of them has failed."""
CHUNK_BYTES = 1 << 20

_VARIANT = re.compile(r"\.(bf16|fp16)[.-]")
"""Rounded copies of the weights, beside the full ones: `x.bf16.safetensors` and the like."""


@dataclass(frozen=True)
class _Layout:
    """How a kind of model lies in its folder.

    A name becomes a path here, so it is one of a known folder and has no further part. Pickles are
    left out: they run whatever code their author put there.

    Attributes:
        what: for messages.
        loaded: the names that are pulled.
        required: patterns that each have a file.
    """

    what: str
    loaded: re.Pattern[str]
    required: tuple[str, ...]


_MOCHI = _Layout(
    "Mochi in diffusers' layout as safetensors",
    re.compile(
        r"model_index\.json"
        r"|(scheduler|text_encoder|tokenizer|transformer|vae)/[\w-][\w.-]*\.(json|safetensors)"
        r"|tokenizer/[\w-][\w.-]*\.(model|txt)"
    ),
    (
        "model_index.json",
        "scheduler/*.json",
        "text_encoder/*.safetensors",
        "tokenizer/*",
        "transformer/*.safetensors",
        "vae/*.safetensors",
    ),
)
_CLASSIFIER = _Layout(
    "classifier in transformers' layout as safetensors",
    re.compile(
        rf"(?!{re.escape(MANIFEST)})[\w-][\w.-]*\.(json|jinja|model|txt)"
        r"|model(-\d{5}-of-\d{5})?\.safetensors"
    ),
    ("config.json", "model*.safetensors"),
)


class Progress(Protocol):
    """Told how far a long thing is, often, and by any thread, but by one at a time."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `what`."""


def verify(folder: Path, progress: Progress) -> list[str]:
    """Read every file of a complete folder again. Asks nothing of the network.

    Returns:
        A line for each file that is not as it was pulled.

    Raises:
        WeightsError: the folder has no manifest to check against.
    """
    manifest = read_manifest(folder)
    with _translate_disk_errors(folder):
        faults = _faults(folder, manifest.files, "Checking", progress)
    return [f"{name}: {faults[name]}" for name in manifest.files if name in faults]


def pull(
    weights: str,
    revision: str,
    data_dir: Path,
    *,
    progress: Progress,
    say: Callable[[str], None],
    endpoint: str | None = None,
) -> Path:
    """Make sure that weights are here, complete and right; fetch what is missing.

    Without a revision it stays with the commit that is here, whole or in part; where there is none,
    `main` is resolved, once. The hub is asked only when something is missing.

    Args:
        weights: a hub id.
        revision: the commit, or empty.
        data_dir: where pulled weights are kept.
        progress: told what is done, in bytes.
        say: told in a line what is being done.
        endpoint: the hub; None is huggingface_hub's own default, HF_ENDPOINT.

    Returns:
        The folder.

    Raises:
        WeightsError: the weights are not complete. The next pull goes on from here.
        EngineUnavailableError: huggingface_hub is not installed.
    """
    if not is_hub_id(weights):
        raise WeightsError(
            f"MOCHI_WEIGHTS={weights} is no hub id, such as genmo/mochi-1-preview: "
            "there is nothing to pull."
        )
    root = data_dir / "weights"
    with _translate_disk_errors(root), exclusive_lock(root, say), _hub(weights, endpoint) as hub:
        known = locate(weights, revision, data_dir)
        if known is not None:
            manifest = read_manifest(known)
        else:
            manifest = _listing(hub, revision or _begun(weights, data_dir))
        folder = known or _model_folder(weights, data_dir) / manifest.commit
        folder.mkdir(parents=True, exist_ok=True)
        fetched = _complete(folder, manifest, hub, progress, say)
        if known is None or fetched:
            _write_manifest(folder, manifest)
    return folder


def _hub(hub_id: str, endpoint: str | None) -> Hub:
    try:
        from models.weights.hub import Hub  # noqa: PLC0415 - a gateway's installation lacks what it imports
    except ImportError as error:
        raise not_installed(error) from error
    except ValueError as error:  # huggingface_hub has read its variables
        raise WeightsError(
            f"HF_ENDPOINT={os.environ.get('HF_ENDPOINT', '')} cannot be read ({error}). "
            "Mend it, or unset it."
        ) from None
    return Hub(hub_id, endpoint)


def _listing(hub: Hub, revision: str) -> Manifest:
    commit, files = hub.list_files(revision or "main")
    if not _COMMIT.fullmatch(commit) or (revision and commit != revision):
        raise WeightsError(f"{hub.endpoint} answers with commit {commit!r}. Is HF_ENDPOINT right?")
    is_classifier = "config.json" in files and "model_index.json" not in files
    layout = _CLASSIFIER if is_classifier else _MOCHI
    loaded = {
        name: file
        for name, file in files.items()
        if layout.loaded.fullmatch(name) and not _VARIANT.search(name)
    }
    lacking = [pattern for pattern in layout.required if not fnmatch.filter(loaded, pattern)]
    if lacking:
        raise WeightsError(
            f"{hub.hub_id} at commit {commit} lacks {', '.join(lacking)}: it holds no "
            f"{layout.what}. Choose another with --weights."
        )
    return Manifest(hub_id=hub.hub_id, commit=commit, files=loaded)


def _complete(
    folder: Path, manifest: Manifest, hub: Hub, progress: Progress, say: Callable[[str], None]
) -> bool:
    """Fetch what is missing or wrong. Whether anything was."""
    faults = _faults(folder, manifest.files, "Checking what is here", progress)
    missing = {name: file for name, file in manifest.files.items() if name in faults}
    total = sum(file.size for file in missing.values())
    for name in missing:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
    have = sum(min(_size(_part(folder / name)) or 0, file.size) for name, file in missing.items())
    say(
        f"{manifest.hub_id} at commit {manifest.commit}, "
        f"{decimal(sum(file.size for file in manifest.files.values()))} in {folder}: "
        + (f"{decimal(total - have)} to fetch" if missing else "complete")
    )
    free = shutil.disk_usage(folder).free
    if free < total - have:
        raise WeightsError(
            f"{decimal(total - have)} are to be fetched, and {folder} has room for "
            f"{decimal(free)}. Make room, or choose another place with MOCHI_DATA_DIR=/path."
        )
    stop = threading.Event()
    fetched = _Tally("Fetching", have, total, progress, stop)
    checked = _Tally("Checking what came", 0, total, progress, stop)

    def get(name: str, file: WeightsFile) -> None:
        part = _part(folder / name)
        hub.fetch(manifest.commit, name, part, file.size, on_bytes=fetched, stop=stop)
        if _fault(part, file, checked):
            part.unlink()
            raise WeightsError(
                f"{name} came damaged from {hub.endpoint} and was removed. "
                "Type again: mochi-server weights pull"
            )
        _sync(part)
        part.replace(folder / name)

    _each(get, missing, stop)
    return bool(missing)


def _faults(
    folder: Path, files: Mapping[str, WeightsFile], what: str, progress: Progress
) -> dict[str, str]:
    """What is wrong with which file."""
    faults: dict[str, str] = {}
    readable = sum(
        file.size for name, file in files.items() if _size(folder / name) == file.size
    )  # of a file of another size nothing is read
    stop = threading.Event()
    tally = _Tally(what, 0, readable, progress, stop)

    def check(name: str, file: WeightsFile) -> None:
        fault = _fault(folder / name, file, tally)
        if fault:
            faults[name] = fault

    _each(check, files, stop)
    return faults


def _fault(path: Path, file: WeightsFile, on_bytes: Callable[[int], None]) -> str:
    size = _size(path)
    if size is None:
        return "missing"
    if size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    if _checksum(path, file, on_bytes) != file.checksum:
        return "changed"
    return ""


def _checksum(path: Path, file: WeightsFile, on_bytes: Callable[[int], None]) -> str:
    kind = file.checksum.partition(":")[0]
    if kind == "sha256":
        digest = hashlib.sha256()
    else:  # git's name for a small file, which is all that the hub has
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return f"{kind}:{digest.hexdigest()}"


class _StoppedError(Exception):
    """Ends a thread; nobody sees it."""


class _Tally:
    """Adds up the bytes of all threads; ends a thread that comes when it is over."""

    def __init__(
        self, what: str, done: int, total: int, progress: Progress, stop: threading.Event
    ) -> None:
        self._what, self._done, self._total = what, done, total
        self._progress = progress
        self._stop = stop
        self._lock = threading.Lock()
        if total:
            progress(what, done, total)

    def __call__(self, count: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        with self._lock:
            self._done += count
            self._progress(self._what, self._done, self._total)


def _each(
    work: Callable[[str, WeightsFile], None],
    files: Mapping[str, WeightsFile],
    stop: threading.Event,
) -> None:
    """Do it for all files, several at once. The first error, or Ctrl-C, ends all of it.

    The threads are daemons: one that listens to a dead connection holds nobody up.
    """
    waiting = iter(files.items())
    results: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        for name, file in waiting:  # an iterator of a dict is safe among threads
            try:
                work(name, file)
            except BaseException as error:  # noqa: BLE001 (the caller raises it)
                results.put(error)
                return
            results.put(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    try:
        for _ in files:
            error = results.get()
            if error is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    part = _part(folder / MANIFEST)
    part.write_text(manifest.model_dump_json(indent=1) + "\n")
    _sync(part)
    for inner in folder.iterdir():
        if inner.is_dir():
            _sync(inner)  # the names in it
    part.replace(folder / MANIFEST)
    _sync(folder)


def _begun(hub_id: str, data_dir: Path) -> str:
    """The commit with which an earlier pull began and was not done; empty for none."""
    newest = max(_commits(hub_id, data_dir), key=_changed_at, default=None)
    return newest.name if newest else ""


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One pull at a time in a data folder. The lock ends with its process, however that ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another pull works in {root}: waiting for it …")
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
                "pull. It goes on where it stopped."
            ) from None
        raise WeightsError(
            f"{error.filename or folder} cannot be used: {error.strerror or error}. "
            "Mend that, or choose another place with MOCHI_DATA_DIR=/path."
        ) from None
