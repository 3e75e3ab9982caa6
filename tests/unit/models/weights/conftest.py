"""A fake hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.services.hub import FakeHub, fake_hub_here


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub_here(monkeypatch) as hub:
        yield hub
