"""How a command reaches a server: the URL and the API key, given or found in the data folder."""

from __future__ import annotations

import os
from typing import Annotated, NamedTuple

import typer

from server.cli.options import no_server, read_settings
from server.errors import MissingKeyError
from server.keys.first import key_path, read_first_key
from worker.broker.embedded import EmbeddedBroker

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "MOCHI_API_KEY"
START_IT = "Is it running? `mochi-server up`"
ServerUrl = Annotated[
    str | None,
    typer.Option(
        envvar="MOCHI_URL",
        show_envvar=False,
        help=f"The server. [default: the one that runs on the data folder, or {DEFAULT_URL}] "
        "[env: MOCHI_URL]",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        envvar=KEY_VARIABLE,
        show_envvar=False,
        help=f"The API key. [default: the one in the data folder] [env: {KEY_VARIABLE}]",
    ),
]


class Access(NamedTuple):
    """A server and the key for it.

    Attributes:
        key_hint: for a message that the key was refused.
        remedy: for a message that the server does not answer.
    """

    url: str
    api_key: str
    key_hint: str = ""
    remedy: str = START_IT

    @classmethod
    def of(cls, url: str | None, api_key: str | None, option: str = "--url") -> Access:
        """What the options say, or the data folder. `option`: the one for the URL.

        Raises:
            MissingKeyError: there is no key.
        """
        key = _key(api_key)
        if url:
            return cls(url, *key)
        data_dir = read_settings().data_dir
        if found := EmbeddedBroker(data_dir).owner_url():
            return cls(found, *key)
        elsewhere = f"For a server elsewhere, set MOCHI_URL or give {option}."
        return cls(DEFAULT_URL, *key, f"{no_server(data_dir)} {elsewhere}")


def _key(given: str | None) -> tuple[str, str]:
    """The key and its hint: a stale variable, or another server's folder, is easily missed."""
    if given:
        is_variable = given == os.environ.get(KEY_VARIABLE)
        remedy = "unset it to use the key in the data folder, or give --api-key."
        return given, f"The key is from {KEY_VARIABLE}: {remedy}" if is_variable else ""
    settings = read_settings()
    path = key_path(settings.data_dir)
    if not (path.exists() or settings.redis_url or EmbeddedBroker(settings.data_dir).is_alive()):
        raise MissingKeyError(
            f"No API key: set {KEY_VARIABLE} or give --api-key. {no_server(settings.data_dir)}"
        )
    remedy = f"set {KEY_VARIABLE} or give --api-key."
    return read_first_key(settings.data_dir), f"The key is from {path}: {remedy}"
