"""Schemas of error bodies."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


def _is_none(value: object) -> bool:
    return value is None


def absent_when_none(description: str) -> Any:  # noqa: ANN401 (as pydantic's Field)
    """A field that is left out of the answer where there is nothing to say."""
    return Field(default=None, exclude_if=_is_none, description=description)


class ErrorBody(BaseModel):
    """Every error: what is wrong, and what to do about it."""

    error: str
    request_id: str | None = absent_when_none("Where there is one.")


class VideosError(BaseModel):
    """What went wrong."""

    message: str
    code: int = Field(description="The status.")


class VideosErrorBody(BaseModel):
    """The same below `/v1/videos`, where clients look for the text in `message`."""

    error: VideosError
    request_id: str | None = absent_when_none("Where there is one.")
