"""A stand-in for the hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.services.hub import StandIn, stand_in_here


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in_here(monkeypatch) as hub:
        yield hub
