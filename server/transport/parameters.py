"""Query, header and path parameters: one declaration parses a parameter and documents it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from starlette.requests import Request

from server.errors import BadHeaderError, BadQueryError

_WHOLE_NUMBER = re.compile(r"[0-9]{1,5}")
_DAY = re.compile(r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}")  # `fromisoformat` takes other forms, too
_FLAG_VALUES = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Parameter(ABC):
    """A parameter of a request. Its `read` raises BadQueryError, or BadHeaderError for a header."""

    name: str
    description: str
    place: Literal["query", "header", "path"] = "query"
    is_required: bool = False

    @property
    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "in": self.place,
            "required": self.is_required,
            "description": self.description,
            "schema": self.schema,
        }

    def values(self, request: Request) -> list[str]:
        """All values that the request has, in their order."""
        if self.place != "query":
            return request.headers.getlist(self.name)
        if not request.scope["query_string"]:
            return []  # as of nearly every poll
        return request.query_params.getlist(self.name)


@dataclass(frozen=True, kw_only=True)
class Flag(Parameter):
    """A switch that is off by default."""

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(_FLAG_VALUES), "default": "false"}

    def read(self, request: Request) -> bool:
        """Whether it is on; one value at most."""
        values = self.values(request)
        if not values:
            return False
        if len(values) > 1 or values[0] not in _FLAG_VALUES:
            raise BadQueryError(f"`{self.name}` must be one of `true`, `1`, `false` and `0`.")
        return _FLAG_VALUES[values[0]]


@dataclass(frozen=True, kw_only=True)
class WholeNumber(Parameter):
    """A number from `least` to `most`, of at most five digits."""

    least: int
    most: int
    default: int

    @property
    def schema(self) -> dict[str, Any]:
        return {
            "type": "integer",
            "minimum": self.least,
            "maximum": self.most,
            "default": self.default,
        }

    def read(self, request: Request) -> int:
        """The last value, or the default."""
        values = self.values(request)
        if not values:
            return self.default
        text = values[-1]
        if not _WHOLE_NUMBER.fullmatch(text) or not self.least <= int(text) <= self.most:
            raise BadQueryError(
                f"`{self.name}` must be a whole number from {self.least} to {self.most}."
            )
        return int(text)


@dataclass(frozen=True, kw_only=True)
class Choice(Parameter):
    """One of several words. Without a default, empty text stands for none."""

    choices: Sequence[str]
    default: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        default = {"default": self.default} if self.default else {}
        return {"type": "string", "enum": list(self.choices), **default}

    def read(self, request: Request) -> str:
        """The last value, or the default."""
        values = self.values(request)
        if values and values[-1] not in self.choices:
            allowed = " or ".join(f"`{choice}`" for choice in self.choices)
            raise BadQueryError(f"`{self.name}` must be {allowed}.")
        return [self.default, *values][-1]


@dataclass(frozen=True, kw_only=True)
class Day(Parameter):
    """A day in UTC."""

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date"}

    def read(self, request: Request) -> date | None:
        """The last value, if there is one."""
        values = self.values(request)
        if not values:
            return None
        with suppress(ValueError):
            if _DAY.fullmatch(values[-1]):
                return date.fromisoformat(values[-1])
        raise BadQueryError(f"`{self.name}` must be a day, like 2026-01-31.")


@dataclass(frozen=True, kw_only=True)
class Text(Parameter):
    """Text. `limits`: further keywords of its JSON schema."""

    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", **self.limits}

    def read(self, request: Request) -> str:
        """The last value, or empty text."""
        return ["", *self.values(request)][-1]


@dataclass(frozen=True, kw_only=True)
class SingleText(Parameter):
    """Text of `least` to `most` characters that may come once."""

    least: int
    most: int

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.least, "maxLength": self.most}

    def read(self, request: Request) -> str | None:
        """The value, if there is one."""
        values = self.values(request)
        if not values:
            return None
        if len(values) > 1 or not self.least <= len(values[0]) <= self.most:
            came = f"{len(values)} of them" if len(values) > 1 else f"{len(values[0])}"
            raise BadHeaderError(
                f"`{self.name}` must be one value of {self.least} to {self.most} characters; "
                f"got {came}."
            )
        return values[0]


def unknown_query(request: Request, *known: Parameter) -> list[str]:
    """Names in the query that are none of `known`, each once."""
    if not request.scope["query_string"]:
        return []
    names = {parameter.name for parameter in known}
    return [name for name in dict.fromkeys(request.query_params) if name not in names]


def documented(*parameters: Parameter) -> list[dict[str, Any]]:
    return [parameter.document() for parameter in parameters]
