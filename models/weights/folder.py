"""Where pulled weights lie on this machine."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

from pydantic import ValidationError

from models.errors import WeightsError
from models.settings import EngineSettings, default_data_dir
from models.weights.manifest import Manifest

MANIFEST = "mochi-weights.json"
PART = ".part"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(weights: str) -> bool:
    """Whether a setting names a model of the hub: it looks like one and is no folder here."""
    return bool(_HUB_ID.fullmatch(weights)) and not Path(weights).is_dir()


def find(weights: str, revision: str, data_dir: Path) -> Path | None:
    """The folder to load. Asks nothing of the network.

    Args:
        weights: a folder, which is taken as it is, or a hub id.
        revision: the commit, or empty: of those that were pulled, the one that was completed last.
        data_dir: where pulled weights are kept.

    Returns:
        None when nothing complete was pulled; `absent` says so to a user.
    """
    folder = locate(weights, revision, data_dir)
    if folder is None or Path(weights).is_dir():
        return folder
    files = read_manifest(folder).files
    is_whole = all(_size(folder / name) == file.size for name, file in files.items())
    return folder if is_whole else None


def locate(weights: str, revision: str, data_dir: Path) -> Path | None:
    """As `find`, but damaged weights too: those whose manifest is there and whose files are not."""
    if Path(weights).is_dir():
        return Path(weights)
    if not is_hub_id(weights):
        return None
    folders = [
        folder
        for folder in _commits(weights, data_dir)
        if revision in {"", folder.name} and _is_readable(folder)
    ]
    return max(folders, key=lambda folder: _changed_at(folder / MANIFEST), default=None)


def absent(weights: str, revision: str, data_dir: Path) -> str:
    """What to tell a user for whom `find` gives None."""
    if not is_hub_id(weights):
        return (
            f"There is no folder MOCHI_WEIGHTS={weights}. "
            "Set MOCHI_WEIGHTS=/path/to/folder (or --weights /path/to/folder), or a hub id such as "
            "genmo/mochi-1-preview."
        )
    commit = f" at commit {revision}" if revision else ""
    return (
        f"The weights {weights}{commit} are not in {data_dir / 'weights'}, or not all of them. "
        f"Type: {pull_command(weights, revision, data_dir)}"
    )


def pull_command(weights: str, revision: str, data_dir: Path) -> str:
    """What to type to have weights fetched or mended."""
    command = ["mochi-server", "weights", "pull"]
    if weights != EngineSettings.model_fields["weights"].default:
        command += ["--weights", weights]
    if revision:
        command += ["--revision", revision]
    if data_dir != default_data_dir():
        command += ["--data-dir", str(data_dir)]
    return shlex.join(command)


def read_manifest(folder: Path) -> Manifest:
    """What a folder should hold.

    Raises:
        WeightsError: it has no manifest, or one that cannot be read.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{folder} cannot be checked: {MANIFEST} in it cannot be read ({error.strerror}). "
            "`mochi-server weights pull` writes one, last, into the folders that it makes."
        ) from None
    except ValidationError:
        raise WeightsError(
            f"{folder / MANIFEST} is damaged. Remove it, then type: mochi-server weights pull"
        ) from None


def _model_folder(hub_id: str, data_dir: Path) -> Path:
    return data_dir / "weights" / hub_id.replace("/", "--")


def _commits(hub_id: str, data_dir: Path) -> list[Path]:
    """The folders of a model, complete or not."""
    folders = _model_folder(hub_id, data_dir).glob("*")
    return [folder for folder in folders if _COMMIT.fullmatch(folder.name)]


def _changed_at(path: Path) -> int:
    """In nanoseconds."""
    return path.stat().st_mtime_ns


def _is_readable(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except WeightsError:
        return False
    return True


def _size(path: Path) -> int | None:
    """In bytes; None for no file that can be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
