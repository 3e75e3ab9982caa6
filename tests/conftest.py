"""Fixtures that all tests share. Each test process has its own broker and its own stacks."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpcore2
import pytest
import structlog
from redis import Redis

from tests.support.forks import forks
from tests.support.stack import Stack
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.services.s3 import ObjectStore


TESTS = Path(__file__).parent


def pytest_configure() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Each call of httpx2 would read the certificates of the system anew.
    httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)


def pytest_collection_finish() -> None:
    # What is loaded now lives until the end: torch, a million objects, to scan at each collection.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    if forks.cache_info().currsize:
        forks().stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="Also the slow tests, and faults many times over."
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    order = {path: place for place, path in enumerate(_spread({item.path: 0 for item in items}))}
    items.sort(key=lambda item: order[item.path])


def _spread(files: Iterable[Path]) -> list[Path]:
    """Files that wait for leases, files that compute, and all others, each evenly among the rest.

    Whole files are handed to the cores in this order (`--dist loadfile`).
    """
    waiting, computing, others = [], [], []
    for file in files:
        below = file.relative_to(TESTS).parts
        if below[0] == "faults" or below[:2] == ("unit", "worker"):
            waiting.append(file)
        elif below[:2] in {("unit", "models"), ("unit", "bench")}:
            computing.append(file)
        else:
            others.append(file)
    groups = (waiting, computing, others)
    places = {file: place / len(group) for group in groups for place, file in enumerate(group)}
    return sorted(places, key=places.__getitem__)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of all tests that had one, such as how fast a dead worker was noticed."""
    figures = sorted(
        f"{value} [{report.nodeid.rpartition('::')[2]}]"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "figure"
    )
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(figures))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a figure, to be printed at the end of the whole run."""
    return lambda text: record_property("figure", text)


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to provoke a fault: the first number in an ordinary run, the second with --all."""
    return lambda few, many: many if request.config.getoption("--all") else few


@pytest.fixture(scope="session")
def _broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def _default_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs in this process sets how logs are written, for its test alone.

    A logger that is cached, as in production, would keep to it for ever.
    """
    configure = structlog.configure

    def configure_without_cache(**how: Any) -> None:
        configure(**how | {"cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configure_without_cache)
    yield
    structlog.reset_defaults()


@pytest.fixture
def redis(_broker: EmbeddedBroker) -> Iterator[Redis]:
    """A client of a real, empty Valkey."""
    client = connect_briefly(_broker.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def redis_url(redis: Redis, _broker: EmbeddedBroker) -> str:
    """Its URL."""
    return _broker.url


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway and a worker with the fake engine, for tests that leave them as they are."""
    with Stack(tmp_path_factory.mktemp("server"), engine="fake", fake_step_seconds="0.01") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="session")
def mock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same with diffusers' Mochi on mock weights."""
    with Stack(tmp_path_factory.mktemp("mock"), mock="true") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="session")
def shared_object_store() -> Iterator[ObjectStore]:
    """An S3 for as long as the tests run. Those that make it misbehave heal it."""
    from tests.support.services.s3 import ObjectStore  # noqa: PLC0415 (a second that few tests need)

    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def object_store(
    shared_object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """An S3 that behaves, with the variables of this process leading to it."""
    for name, value in shared_object_store.environ().items():
        monkeypatch.setenv(name, value)
    yield shared_object_store
    shared_object_store.heal()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real one. Not for longer: while it runs, this process can run no event loop of its own."""
    from tests.support.visitor import chromium  # noqa: PLC0415 (a second that few tests need)

    with chromium() as browser:
        yield browser
