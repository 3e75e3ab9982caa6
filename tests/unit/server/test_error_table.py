"""Every error of ours has a status, or a reason to have none."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import models
import server
import worker
from models.errors import MochiError
from server.errors import MEANING, NEVER_IN_HTTP, STATUS, HttpError
from worker.errors import JobError, LimitError

BASES = {MochiError, HttpError, JobError, LimitError}
"""Never raised themselves."""


def our_errors() -> set[type[MochiError]]:
    for package in (models, worker, server):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith("models.mochi"):
                importlib.import_module(module.name)
    ours = {"models", "worker", "server"}
    return {kind for kind in below(MochiError) if kind.__module__.partition(".")[0] in ours}


def below(base: type[MochiError]) -> Iterator[type[MochiError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from below(kind)


def test_every_error_has_a_status_or_never_meets_http() -> None:
    unmapped = {
        kind.__name__
        for kind in our_errors() - BASES - set(STATUS)
        if not issubclass(kind, tuple(NEVER_IN_HTTP))
    }
    assert unmapped == set()


def test_no_error_is_in_both_tables() -> None:
    assert [kind for kind in STATUS if issubclass(kind, tuple(NEVER_IN_HTTP))] == []


def test_bases_are_never_answered_with() -> None:
    assert all(base.__subclasses__() for base in BASES)
    assert BASES & set(STATUS) == set()


def test_every_status_has_its_line() -> None:
    assert set(STATUS.values()) <= set(MEANING)


def test_422_is_no_error() -> None:
    assert 422 not in STATUS.values()
