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
    """A server and the key for it. `key_hint`: for a message that the key was refused."""

    url: str
    api_key: str
    key_hint: str = ""

    @classmethod
    def of(cls, url: str | None, api_key: str | None) -> Access:
        """What the options say, or the data folder.

        Raises:
            MissingKeyError: there is no key.
        """
        return cls(url or _url_of_folder(), *_key(api_key))


def _url_of_folder() -> str:
    return EmbeddedBroker(read_settings().data_dir).owner_url() or DEFAULT_URL


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
