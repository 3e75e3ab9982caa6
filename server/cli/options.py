"""What the commands share: options that are settings, the broker, and how they end on an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from models.errors import MochiError
from models.settings import ENV_PREFIX
from server.errors import CommandError, visible
from server.settings import ServerSettings, load_settings
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker, broker_of
from worker.errors import BrokerUnavailableError


def setting(name: str, *flags: str) -> Any:  # noqa: ANN401 (as typer.Option)
    """An option that is a setting under another name."""
    field = ServerSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    values = f" [values: {', '.join(choices)}]" if choices else ""
    shown = "" if default in ("", False) else f" [default: {default}]"
    text = f"{field.description}{values}{shown} [env: {ENV_PREFIX}{name.upper()}]"
    return typer.Option(*(flags or ("--" + name.replace("_", "-"),)), help=text)


DataDir = Annotated[Path | None, setting("data_dir")]
RedisUrl = Annotated[str | None, setting("redis_url")]


def given(ctx: typer.Context) -> Iterator[tuple[str, Any]]:
    """The options that have a value."""
    return ((name, value) for name, value in ctx.params.items() if value is not None)


def apply_options(ctx: typer.Context) -> None:
    """Options become variables: settings are read in one way, here and in every child process."""
    for name, value in given(ctx):
        if name in ServerSettings.model_fields:
            os.environ[ENV_PREFIX + name.upper()] = str(value)


def read_settings() -> ServerSettings:
    """The settings, or the end."""
    with errors_end(os.EX_CONFIG):
        return load_settings()


class NoServerError(CommandError):
    """What a command looks at does not run."""


@contextmanager
def running_broker() -> Iterator[Redis]:
    """The broker of a running server, for a command that looks at it."""
    settings = read_settings()
    url = settings.redis_url or EmbeddedBroker(settings.data_dir).url
    try:
        with connect_briefly(url) as redis:
            yield redis
    except BrokerUnavailableError as error:
        if settings.redis_url or not isinstance(error.__cause__, RedisConnectionError):
            raise
        raise NoServerError(
            f"No server runs on the data folder {settings.data_dir}. Start it there with "
            "`mochi-server up`, or name another folder with --data-dir or MOCHI_DATA_DIR."
        ) from None


@contextmanager
def any_broker() -> Iterator[Redis]:
    """The same; the embedded one is started for the duration, if it does not run."""
    settings = read_settings()
    with (
        broker_of(settings.redis_url, settings.data_dir) as url,
        connect_briefly(url) as redis,
    ):
        yield redis


@contextmanager
def errors_end(status: int = 1) -> Iterator[None]:
    """Errors of ours end the command with their text, and with `status`."""
    try:
        yield
    except BrokerUnavailableError as error:
        end(error.advice, status)
    except MochiError as error:
        end(str(error), status)


def end(message: str, status: int) -> NoReturn:
    """Say this, and end."""
    typer.secho("\n".join(map(visible, message.split("\n"))), err=True, fg="red")
    raise typer.Exit(status)
