"""The key that the first `up` makes, kept in the data folder for whoever can read that."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from redis import Redis

from server.errors import MissingKeyError, SettingsError
from server.keys.lookup import Scope, new_secret
from server.keys.record import NewKey
from server.keys.store import KeyExistsError, any_key, is_registered, register_key

DRAFT = "key.new-"
"""How the names of files begin whose key may not be let in yet."""


def first_key_file(redis: Redis, data_dir: Path) -> Path | None:
    """The file that holds the first key, which is made if there is no key at all. It may do all.

    None where other keys were made before, and none in this folder.

    Raises:
        SettingsError: the folder cannot be written to; no key was made.
        BrokerUnavailableError: no key was made.
    """
    if any_key(redis):
        return _kept_file(redis, data_dir)
    secret = new_secret()
    # First the file: a key that is known to nobody could never be found again. It has a name of its
    # own as long as it may be that another process is making the first key.
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = _write(secret, data_dir)
    except OSError as error:
        raise SettingsError(
            f"The key cannot be kept in {_path(data_dir)}: {error.strerror}."
        ) from None
    try:
        register_key(redis, secret, NewKey(name="first", scopes=tuple(Scope)))
    except KeyExistsError:  # it was faster
        draft.unlink()
    return _kept_file(redis, data_dir)


def _write(secret: str, data_dir: Path) -> Path:
    """For its owner only, and on the disk: so will the broker have the key."""
    with NamedTemporaryFile("w", prefix=DRAFT, dir=data_dir, delete=False) as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(file.name)


def _kept_file(redis: Redis, data_dir: Path) -> Path | None:
    """The file with a key that is let in, under its name at last, whoever has written it."""
    path = _path(data_dir)
    for file in [*data_dir.glob(DRAFT + "*"), path]:
        with suppress(OSError):  # another process may be doing the same
            if is_registered(redis, file.read_text().strip()):
                return file.replace(path)
    return None


def read_first_key(data_dir: Path) -> str:
    """The key in the data folder.

    Raises:
        MissingKeyError: there is none.
    """
    try:
        return _path(data_dir).read_text().strip()
    except OSError:
        raise MissingKeyError(
            f"No API key: set MOCHI_API_KEY or give --api-key. (There is none in {data_dir}; "
            "`mochi-server keys create NAME` prints a new one.)"
        ) from None


def _path(data_dir: Path) -> Path:
    return data_dir / "key"
