"""The key that the first `up` makes, kept in the data folder for whoever can read that."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redis import Redis

from server.errors import MissingKeyError
from server.keyring import Scope, any_key, create_key


def make_first_key(redis: Redis, data_dir: Path) -> Path | None:
    """Make a key, if there is none at all, and return the file that holds it.

    Raises:
        BrokerUnavailableError: no key was made.
    """
    if any_key(redis):
        return None
    secret = create_key(redis, "first", frozenset(Scope), time.time())
    path = _path(data_dir)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 (with a mode)
        file.write(secret + "\n")
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
            "`mochi-server keys create NAME` makes one.)"
        ) from None


def _path(data_dir: Path) -> Path:
    return data_dir / "key"
