"""What the commands `python -m tests.bench` and `python -m tests.chaos` share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from models.errors import MochiError
from models.settings import ENV_PREFIX
from server.settings import ServerSettings, load_settings
from worker.errors import BrokerUnavailableError


@contextmanager
def exit_on_error(status: int = 1) -> Iterator[None]:
    """Print an error of this project, and exit with `status`."""
    try:
        yield
    except MochiError as error:
        text = error.advice if isinstance(error, BrokerUnavailableError) else str(error)
        typer.secho(text, err=True, fg="red")
        raise typer.Exit(status) from None


def load_settings_with(**options: object) -> ServerSettings:
    """Load the settings, of which these options are given or None; exit if they are invalid."""
    for name, value in options.items():
        if value is not None:
            os.environ[ENV_PREFIX + name.upper()] = str(value)
    with exit_on_error(os.EX_CONFIG):
        return load_settings()
