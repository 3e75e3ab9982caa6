"""Settings of the gateway, on top of the job system's; and the one way to load any of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import MochiError
from models.settings import ENV_PREFIX
from worker.settings import WorkerSettings


class ServerSettings(WorkerSettings):
    """How the gateway listens and what it lets in."""

    model_config = SettingsConfigDict(allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^/?#\s]+)?$",
        description="Scheme and host of the links in answers; empty means those that were called.",
    )
    body_bytes: int = Field(default=65536, ge=1024, description="Largest request body.")
    v1_seconds: float = Field(
        default=600, gt=0, description="How long a blocking call waits before it answers 504."
    )
    most_waiting: int = Field(
        default=10_000, ge=1, description="Requests that may wait; one more is answered 429."
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="Worker processes that `mochi-server up` starts."
    )
    drain_seconds: float = Field(
        default=30, ge=0, description="How long `up` lets running requests finish when it stops."
    )


class SettingsError(MochiError):
    """A setting has a bad value, or there is no such setting. The text names the variable."""


_Settings = TypeVar("_Settings", bound=BaseSettings)


def load_settings(
    kind: type[_Settings],
    environ: Mapping[str, str],
    **given: Any,  # noqa: ANN401
) -> _Settings:
    """Read `MOCHI_*` variables; what is in `given` and not None goes before them.

    Raises:
        SettingsError: naming the variable, the rule and what came.
    """
    _refuse_unknown(environ)
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = ENV_PREFIX + str(first["loc"][0]).upper()
        raise SettingsError(
            f"{variable}: {first['msg'].lower()}; got {first['input']!r}."
        ) from None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in ServerSettings.model_fields} | CLIENT_VARIABLES
    for variable in environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{variable}: there is no such setting.{hint}")


CLIENT_VARIABLES = {"MOCHI_URL", "MOCHI_API_KEY"}
"""Read by the commands that are clients."""
