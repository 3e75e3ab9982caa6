"""The key that the first `up` makes, kept in the data folder for whoever can read that."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from server.errors import MissingKeyError
from server.key_record import NewKey
from server.keyring import Scope, new_secret
from server.keys import KeyExistsError, any_key, is_registered, register_key
from server.settings import SettingsError


def first_key_file(redis: Redis, data_dir: Path) -> Path | None:
    """The file that holds the first key, which is made if there is no key at all. It may do all.

    None where other keys were made before, and none in this folder.

    Raises:
        SettingsError: the folder cannot be written to; no key was made.
        BrokerUnavailableError: no key was made.
    """
    path = _path(data_dir)
    if any_key(redis):
        return path if path.exists() and is_registered(redis, read_first_key(data_dir)) else None
    secret = new_secret()
    # First the file: a key that is known to nobody could never be found again.
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secret + "\n")
    except OSError as error:
        raise SettingsError(f"The key cannot be kept in {path}: {error.strerror}.") from None
    try:
        register_key(redis, secret, NewKey(name="first", scopes=tuple(Scope)))
    except KeyExistsError:  # another machine on this broker was faster
        path.unlink()
        return None
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
