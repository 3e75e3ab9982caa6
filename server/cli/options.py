"""What commands share: options made from settings, the broker, and how errors end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast, get_args, get_origin

import structlog
import typer
from pydantic.fields import FieldInfo

from models.errors import MochiError
from models.settings import ENV_PREFIX, EngineSettings
from server.errors import CommandError, visible
from server.keys.times import parse_duration
from server.settings import ServerSettings, load_settings
from worker.broker.connection import Client, check_schema, connect_briefly
from worker.broker.embedded import EmbeddedBroker, broker_of
from worker.errors import BrokerUnavailableError
from worker.process.systemd import journal_prefix

BROKER = ("data_dir", "redis_url")
ENGINE = tuple(
    name for name in EngineSettings.model_fields if name not in {"engine", "fake_step_seconds"}
)
GATEWAY = (
    "host",
    "port",
    "public_url",
    "keys_file",
    "tls_cert",
    "tls_key",
    "trusted_proxies",
    "docs",
    "cache",
)

Command = Callable[..., None]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name or id.")]


def settings_options(*names: str, **helps: str) -> Callable[[Command], Command]:
    """Add an option for each of these settings to a command.

    A given option sets the variable of its setting, so that settings are read in one way, in this
    process and in its children. `helps` replace help texts of the settings.
    """
    options = {
        name: option(name, ServerSettings.model_fields[name], helps.get(name) or _help(name))
        for name in names
    }

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**arguments: object) -> None:
            apply_options({name: arguments.pop(name) for name in names})
            command(**arguments)

        return add_options(run, options)

    return decorate


def add_options(command: Command, options: Mapping[str, Parameter]) -> Command:
    """Extend the signature of a command, which has them instead of its `**` argument, if any."""
    own = signature(command, eval_str=True).parameters.values()
    named = [each for each in own if each.kind is not Parameter.VAR_KEYWORD]
    cast("Any", command).__signature__ = Signature([*named, *options.values()])
    return command


def option(name: str, field: FieldInfo, text: str) -> Parameter:
    """The option for a field of a pydantic model; None when it is not given."""
    kind: Any = field.annotation if field.annotation in {bool, int, float, Path} else str
    flag = f"--{name}".replace("_", "-")
    if kind is bool and field.default:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    given = typer.Option(None, flag, help=text)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=given, annotation=kind | None)


def _help(name: str) -> str:
    field = ServerSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    values = f" [values: {', '.join(choices)}]" if choices else ""
    shown = "" if default in ("", False) else f" [default: {default}]"
    return f"{field.description}{values}{shown} [env: {ENV_PREFIX}{name.upper()}]"


def apply_options(arguments: Mapping[str, Any]) -> None:
    """Set the variables of the settings that have a value."""
    for name, value in arguments.items():
        if name in ServerSettings.model_fields and value is not None:
            os.environ[ENV_PREFIX + name.upper()] = str(value)


def duration(text: str) -> timedelta:
    """Parse an option like 7d."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def expand(path: Path | None) -> Path | None:
    """Replace a leading `~`, which shells leave in `--output=~/x`."""
    try:
        return path and path.expanduser()
    except RuntimeError:
        raise typer.BadParameter("There is no such home folder: write the whole path.") from None


def read_settings() -> ServerSettings:
    """Load the settings; exit with status 78 if they are invalid."""
    with exit_on_error(os.EX_CONFIG):
        return load_settings()


class NoServerError(CommandError):
    """No server runs, or has run, on the data folder."""


@contextmanager
def running_broker() -> Iterator[Client]:
    """Connect to the broker of a running server; exit if there is none."""
    settings = read_settings()
    embedded = EmbeddedBroker(settings.data_dir)
    with exit_on_error():
        try:
            with connect_briefly(settings.redis_url or embedded.url) as redis:
                check_schema(redis)
                yield redis
        except BrokerUnavailableError:
            if settings.redis_url or embedded.is_alive():
                raise
            raise NoServerError(no_server(settings.data_dir)) from None


def no_server(data_dir: Path) -> str:
    return (
        f"No server runs on the data folder {data_dir}. Start one with `mochi-server up`, or "
        "choose the folder with --data-dir or MOCHI_DATA_DIR."
    )


@contextmanager
def any_broker(*, makes_folder: bool = False) -> Iterator[Client]:
    """Connect to the broker; start the embedded one for the duration if it does not run.

    `makes_folder`: a data folder without a broker gets one; otherwise it is refused, as a name with
    a typing error is more likely.
    """
    # Standard output is for the command's result.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    settings = read_settings()
    is_new = not settings.redis_url and not EmbeddedBroker(settings.data_dir).has_folder
    if is_new:
        _say_new(settings.data_dir, is_made=makes_folder)
    with (
        exit_on_error(),
        broker_of(settings.redis_url, settings.data_dir, settings.valkey) as url,
        connect_briefly(url) as redis,
    ):
        check_schema(redis)
        yield redis


def _say_new(data_dir: Path, *, is_made: bool) -> None:
    """Name the folder on which no server has run yet; exit unless it is made."""
    said = f"No server has run on the data folder {data_dir} yet."
    remedy = "If you meant another, choose it with --data-dir or MOCHI_DATA_DIR."
    if not is_made:
        fail(f"{said} {remedy}", 1)
    typer.secho(visible(f"{said} It is made now. {remedy}"), err=True, fg="yellow")


@contextmanager
def exit_on_error(status: int = 1) -> Iterator[None]:
    """On an error of this project, print its text and exit with `status`."""
    try:
        yield
    except BrokerUnavailableError as error:
        fail(error.advice, status)
    except MochiError as error:
        fail(str(error), status)


def fail(message: str, status: int) -> NoReturn:
    """Print an error and exit."""
    lines = (journal_prefix("error") + visible(line) for line in message.split("\n"))
    typer.secho("\n".join(lines), err=True, fg="red")
    raise typer.Exit(status)
