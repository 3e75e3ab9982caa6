"""Warnings in a result: what of the body was ignored, and what the client can do instead."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from models.request.catalogue import CATALOGUE, Model
from models.request.params import hint
from server.api.submit.plan import FIELDS
from server.transport.responses import shown_names
from server.webhooks.url import FIELD

_OTHERS = (*sorted(FIELDS), FIELD)
"""Fields of a body besides the parameters of the video."""


def submit_hints(ignored: Iterable[str], body: Mapping[str, Any], model: Model) -> list[str]:
    """One for each ignored name of a submit's body; `model` is the one in the path."""
    asked = body.get("model")
    named = {}
    if isinstance(asked, str) and asked in CATALOGUE and asked != model.slug:
        named["model"] = f"; the path names the model: POST /v2/{asked}"
    return [hint(name, _OTHERS) + named.get(name, "") for name in shown_names(ignored)]


def finish_hints(ignored: Iterable[str]) -> list[str]:
    """One for each ignored name of a finish's body. All parameters are the draft's."""
    return [_finish_hint(name) for name in shown_names(ignored)]


def query_hints(ignored: Iterable[str], known: Iterable[str], fields: Container[str]) -> list[str]:
    """One for each ignored name of a query.

    Args:
        ignored: the names.
        known: those that the query may have.
        fields: those that the body may have.
    """
    return [_query_hint(name, [*known], fields) for name in shown_names(ignored)]


def _query_hint(name: str, known: list[str], fields: Container[str]) -> str:
    if name in fields:
        return f"`{name}` in the query was ignored: it belongs into the body"
    meant = next(iter(get_close_matches(name, known, n=1)), "")
    also = meant and f"; did you mean `{meant}`?"
    return f"`{name}` in the query is unknown and was ignored{also}"


def _finish_hint(name: str) -> str:
    if get_close_matches(name, [FIELD], n=1):
        return f"`{name}` is unknown and was ignored; did you mean `{FIELD}`?"
    return f"`{name}` was ignored: a finish takes only `{FIELD}`, and the rest is the draft's"
