"""The command that measures the engine, up to the process that does it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import main as cli
from server.cli import processes
from server.settings import load_settings


@pytest.fixture(autouse=True)
def _environ_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    monkeypatch.setattr(os, "environ", outside)


def refused(*options: str) -> tuple[int, str]:
    """Exit status and message of `mochi-server bench engine` when it does not begin."""
    result = CliRunner().invoke(cli.app, ["bench", "engine", *options], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_a_measurement_of_the_engine_is_handed_over_to_a_process_with_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    became: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, command: became.extend(command))
    options = [
        "--frames", "49", "--frames", "160", "--compare", "stock", "--memory", "23.5",
        "--profile", "24gb", "--no-compile", "--data-dir", str(tmp_path), "-o", "out.json",
    ]  # fmt: skip
    cli.app(["bench", "engine", *options], standalone_mode=False)
    assert became[:-1] == [sys.executable, "-P", "-m", "models.mochi.bench"]
    assert json.loads(became[-1]) == {
        "frames": [49, 160], "steps": 30, "repeats": 3, "compare": "stock", "memory": 23.5,
        "output": "out.json", "trace": None, "data_dir": str(tmp_path),
    }  # fmt: skip
    settings = load_settings()
    assert (settings.profile, settings.compile) == ("24gb", False)
    assert "weights" not in settings.model_fields_set  # random numbers, unless asked for


def test_the_alive_file_of_a_killed_worker_is_gone_before_the_next_one_imports_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Imports last longer than a health check waits."""
    file = tmp_path / "alive"
    file.touch()
    left: list[bool] = []
    monkeypatch.setattr(os, "execv", lambda *_: left.append(file.exists()))
    monkeypatch.setenv("MOCHI_ALIVE_FILE", str(file))
    cli.app(["worker", "--redis-url", "redis://127.0.0.1:1/0"], standalone_mode=False)
    assert left == [False]


def test_a_home_folder_that_the_shell_leaves_is_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    became: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, command: became.extend(command))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--output=~/out.json", "--trace=~/trace", "--data-dir=~"]
    cli.app(["bench", "engine", *options], standalone_mode=False)
    order = json.loads(became[-1])
    assert (order["output"], order["trace"]) == (f"{tmp_path}/out.json", f"{tmp_path}/trace")


def test_a_home_folder_that_does_not_exist_is_refused_by_its_option() -> None:
    status, message = refused("--output=~nobody-here/out.json")
    assert status == 2
    assert "--output" in message
    assert "no such home folder" in message


def test_python_keeps_the_docstrings_that_transformers_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    inherited: list[str | None] = []
    monkeypatch.setattr(os, "execv", lambda *_: inherited.append(os.getenv("PYTHONOPTIMIZE")))
    cli.app(["worker", "--redis-url", "redis://127.0.0.1:1/0"], standalone_mode=False)
    assert inherited == [None]


@pytest.mark.parametrize(
    "options",
    [("--frames", "0"), ("--frames", "161"), ("--steps", "9"), ("--compare", "other")],
    ids=str,
)
def test_a_measurement_that_makes_no_sense_is_refused_before_torch_is_loaded(
    options: tuple[str, str],
) -> None:
    status, message = refused(*options)
    assert status == 2
    assert options[0] in message


def test_a_wrong_setting_is_refused_before_torch_is_loaded() -> None:
    status, message = refused("--profile", "16gb")
    assert status == os.EX_CONFIG
    assert "MOCHI_PROFILE" in message


@pytest.mark.parametrize("option", ["-o", "--trace"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_measured(
    option: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "result"
    status, message = refused(option, str(place))
    assert status == 1
    assert str(place.parent) in message
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_without_torch_a_measurement_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "missing_libraries", lambda: ["torch"])
    status, message = refused()
    assert status == os.EX_CONFIG
    assert "pip install -c constraints.txt '.[worker]'" in message


def test_several_models_with_real_weights_are_refused_before_they_are_pulled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulled: list[object] = []
    monkeypatch.setattr(processes, "fetch_missing", pulled.append)
    command = ["up", "--models", "mochi-1,mochi-1-fast"]
    result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert result.exit_code == os.EX_CONFIG
    assert "Start a worker for each: MOCHI_MODELS=mochi-1, MOCHI_MODELS=mochi-1" in result.output
    assert pulled == []
