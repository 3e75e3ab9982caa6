"""The key that the first `up` makes, kept in the data folder for whoever can read that."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redis import Redis

from server.errors import MissingKeyError
from server.keyring import Scope, any_key, new_secret, register_key


def first_key_file(redis: Redis, data_dir: Path) -> Path | None:
    """The file that holds the first key, which is made if there is no key at all.

    None where other keys were made before, and none in this folder.

    Raises:
        BrokerUnavailableError: no key was made.
    """
    path = _path(data_dir)
    if any_key(redis):
        return path if path.exists() else None
    secret = new_secret()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # First the file: a key that is known to nobody could never be found again.
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 (with a mode)
        file.write(secret + "\n")
    register_key(redis, secret, "first", frozenset(Scope), time.time())
    return path


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
