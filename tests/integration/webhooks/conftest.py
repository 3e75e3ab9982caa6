"""A server that may call receivers on this machine, and a client that has one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.services.customer import Customer
from tests.support.services.receiver import ALLOWED, Receiver, receiver
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0.01", "webhook_allow": ALLOWED}
    with Stack(tmp_path_factory.mktemp("webhooks"), **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as it:
        yield it


@pytest.fixture
def customer(stack: Stack, there: Receiver) -> Customer:
    return Customer(stack, there)
