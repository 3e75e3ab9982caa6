"""Schemas of error responses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


def absent_when_none(description: str) -> Any:  # noqa: ANN401 (as pydantic's Field)
    """An optional field that is left out of the response instead of being null."""
    return Field(default=None, exclude_if=lambda value: value is None, description=description)


class ErrorBody(BaseModel):
    """An error: what is wrong, and the remedy."""

    error: str
    parameters: dict[str, str] | None = absent_when_none(
        "Where parameters are wrong: the message of each, by its name."
    )
    request_id: str | None = absent_when_none("Where there is one.")


class VideosError(BaseModel):
    """What went wrong."""

    message: str
    code: int = Field(description="The HTTP status.")


class VideosErrorBody(BaseModel):
    """An error below a path of the OpenAI API, whose clients look for the text in `message`."""

    error: VideosError
    request_id: str | None = absent_when_none("Where there is one.")
