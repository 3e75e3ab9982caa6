"""Finds pulled weights on this machine, without a network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pydantic import ValidationError

from models.errors import WeightsError
from models.request.catalogue import MOCHI
from models.settings import EngineSettings, default_data_dir
from models.weights.manifest import Manifest, size

MANIFEST = "mochi-weights.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_DEFAULTS = EngineSettings.model_fields
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(weights: str) -> bool:
    """Whether a setting names a model on the hub: it has the form of one and is not a folder."""
    return bool(_HUB_ID.fullmatch(weights)) and not Path(weights).is_dir()


def find(weights: str, revision: str, data_dir: Path) -> Path | None:
    """The folder to load.

    Args:
        weights: a folder, which is used as it is, or a hub id.
        revision: the commit; empty for the one that was completed last.
        data_dir: where pulled weights are kept.

    Returns:
        None when no complete folder was pulled; `absent` is the message for that.
    """
    folder = locate(weights, revision, data_dir)
    if folder is None or Path(weights).is_dir():
        return folder
    files = read_manifest(folder).files
    is_whole = all(size(folder / name) == file.size for name, file in files.items())
    return folder if is_whole else None


def locate(weights: str, revision: str, data_dir: Path) -> Path | None:
    """As `find`, but a folder with a manifest counts even if its files are missing or damaged."""
    if Path(weights).is_dir():
        return Path(weights)
    if not is_hub_id(weights):
        return None
    folders = [
        folder
        for folder in commit_folders(weights, data_dir)
        if revision in {"", folder.name} and _is_readable(folder)
    ]
    return max(folders, key=lambda folder: changed_at(folder / MANIFEST), default=None)


def absent(weights: str, revision: str, data_dir: Path) -> str:
    """The message for a user when `find` returns None."""
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


def pull_command(
    weights: str, revision: str, data_dir: Path, variant: str = _DEFAULTS["variant"].default
) -> str:
    """The command that downloads or repairs weights."""
    command = ["mochi-server", "weights", "pull"]
    if weights != MOCHI.weights:
        command += ["--weights", weights]
    if revision:
        command += ["--revision", revision]
    if variant != _DEFAULTS["variant"].default:
        command += ["--variant", variant]
    if data_dir != default_data_dir():
        command += ["--data-dir", str(data_dir)]
    return shlex.join(command)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        WeightsError: it is missing or cannot be read.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{folder} cannot be checked: {MANIFEST} in it cannot be read ({error.strerror}). "
            "Only a folder that `mochi-server weights pull` has completed has this file."
        ) from None
    except ValidationError:
        raise WeightsError(
            f"{folder / MANIFEST} is damaged. Remove it, then type: mochi-server weights pull"
        ) from None


def model_folder(hub_id: str, data_dir: Path) -> Path:
    return data_dir / "weights" / hub_id.replace("/", "--")


def commit_folders(hub_id: str, data_dir: Path) -> list[Path]:
    """The folders of a model, complete or not."""
    folders = model_folder(hub_id, data_dir).glob("*")
    return [folder for folder in folders if COMMIT.fullmatch(folder.name)]


def changed_at(path: Path) -> int:
    """In nanoseconds."""
    return path.stat().st_mtime_ns


def _is_readable(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except WeightsError:
        return False
    return True
