"""Fixtures that the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.support.client import Client
from tests.faults.support.workers import clear, stack_with_gateway
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack_with_gateway(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def stack(_stack: Stack) -> Iterator[Stack]:
    """A gateway and nothing else."""
    yield _stack
    clear(_stack)


@pytest.fixture
def client(stack: Stack) -> Client:
    """A client of it, with a key of its own."""
    return Client(stack)
