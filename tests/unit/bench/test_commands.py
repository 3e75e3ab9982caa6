"""The commands `python -m tests.bench` and `python -m tests.chaos`: help, and what they refuse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.bench.__main__ import app as bench
from tests.chaos.__main__ import app as chaos

COMMANDS = ("gateway", "request", "formats", "events", "forecast", "cluster", "engine-counts")


@pytest.fixture(autouse=True)
def _environ_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    monkeypatch.setattr(os, "environ", outside)


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and all output of `python -m tests.bench`."""
    result = CliRunner().invoke(bench, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_benchmark_has_an_example(command: str) -> None:
    status, helped = run(command, "--help")
    assert status == 0
    assert f"Example: python -m tests.bench {command} --" in helped


def test_the_help_of_the_chaos_run_has_an_example() -> None:
    helped = CliRunner().invoke(chaos, ["--help"], env={"COLUMNS": "200"})
    assert helped.exit_code == 0
    assert "Example: python -m tests.chaos --" in helped.output


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("gateway", "--seconds", "0"),
        ("gateway", "--connections", "0"),
        ("request", "--count", "0"),
        ("formats", "--frames", "161"),
        ("formats", "--count", "0"),
        ("events", "--clients", "1"),
        ("forecast", "--requests", "1"),
        ("cluster", "--workers", "0"),
        ("cluster", "--clients", "0"),
        ("engine-counts", "--frames", "0"),
        ("engine-counts", "--frames", "161"),
    ],
)
def test_a_measurement_of_nothing_is_refused(command: str, option: str, value: str) -> None:
    status, message = run(command, option, value)
    assert status == 2
    assert option in message


@pytest.mark.parametrize("command", ["gateway", "engine-counts"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_measured(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "result"
    status, message = run(command, "-o", str(place))
    assert status == 1
    assert str(place.parent) in message
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_unknown_speed_of_a_card_is_refused() -> None:
    status, message = run("forecast", "--mock-speed", "abacus")
    assert status == os.EX_CONFIG
    assert "MOCHI_MOCK_SPEED: got 'abacus'" in message
