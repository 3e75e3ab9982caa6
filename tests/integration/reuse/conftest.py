"""A client of the server that each file starts."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.stack import Stack


@pytest.fixture
def client(stack: Stack) -> httpx2.Client:
    return stack.http()
