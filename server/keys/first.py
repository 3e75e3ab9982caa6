"""The first API key: made by the first `up`, and stored in the data folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from redis import Redis

from models.settings import make_private_folder
from server.errors import MissingKeyError, SettingsError
from server.keys.lookup import Scope, new_secret
from server.keys.record import NewKey
from server.keys.store import KeyExistsError, all_keys, any_key, create_key, is_registered

NAME = "first"
DRAFT = "key.new-"
"""Prefix of files whose key may not be registered yet."""


def first_key_file(redis: Redis, data_dir: Path) -> Path | None:
    """The file of the first key, which has all scopes and is made if there was none.

    None if it is not in this folder, or was revoked; or if a file declares the keys.

    Raises:
        SettingsError: the folder cannot be written to; no key was made.
        BrokerUnavailableError: no key was made.
    """
    kept = _kept_file(redis, data_dir)
    if kept is not None or not _is_lacking(redis):
        return kept
    secret = new_secret()
    # The file comes first: a registered key without a file would be lost. Its name is unique, as
    # another process may be making the first key at the same time.
    try:
        make_private_folder(data_dir)
        draft = _write(secret, data_dir)
    except OSError as error:
        raise SettingsError(
            f"The API key cannot be written to {key_path(data_dir)}: {error.strerror}. Choose "
            "another folder with --data-dir."
        ) from None
    try:
        create_key(redis, NewKey(name=NAME, scopes=tuple(Scope)), secret)
    except KeyExistsError:  # another process was faster
        draft.unlink()
    return _kept_file(redis, data_dir)


def _is_lacking(redis: Redis) -> bool:
    """Keys that the operator created do not count: their secrets are in no file."""
    return not any_key(redis) or not any(
        key.name == NAME or key.source == "file" for key, _ in all_keys(redis)
    )


def _write(secret: str, data_dir: Path) -> Path:
    """Write a private file and sync it to disk, as the broker does with the key."""
    with NamedTemporaryFile("w", prefix=DRAFT, dir=data_dir, delete=False) as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(file.name)


def _kept_file(redis: Redis, data_dir: Path) -> Path | None:
    """Rename the file with a registered key, by whichever process, to its final name."""
    path = key_path(data_dir)
    for file in [*data_dir.glob(DRAFT + "*"), path]:
        with suppress(OSError):  # another process may be renaming it
            if is_registered(redis, file.read_text().strip()):
                return file.replace(path)
    return None


def read_first_key(data_dir: Path) -> str:
    """The key in the data folder.

    Raises:
        MissingKeyError: there is none.
    """
    try:
        return key_path(data_dir).read_text().strip()
    except OSError:
        raise MissingKeyError(
            f"No API key: set MOCHI_API_KEY or give --api-key. None is in {data_dir}; "
            "`mochi-server keys create NAME` prints a new one."
        ) from None


def key_path(data_dir: Path) -> Path:
    """Where the first key is kept."""
    return data_dir / "key"
