"""Options are settings under another name. What the commands do, `test_up.py` tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.settings import EngineSettings
from server.cli import main as cli
from server.cli import processes
from server.cli.options import apply_options
from server.settings import ServerSettings, load_settings
from tests.support.stack import COMMAND

NO_SETTINGS = {"check", "help"}
FOR_TESTS = {"engine", "fake_step_seconds"}


@pytest.fixture(autouse=True)
def _environ_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    monkeypatch.setattr(os, "environ", outside)


def parse(command: str, *options: str) -> Any:
    """The context in which a command is called; of a class that typer keeps to itself."""
    return cli.load(command).make_context(command, list(options))


@pytest.mark.parametrize("command", ["up", "gateway", "worker"])
def test_every_option_is_a_setting(command: str) -> None:
    options = {option.name for option in parse(command).command.params}
    assert options - NO_SETTINGS <= set(ServerSettings.model_fields)


@pytest.mark.parametrize("command", ["up", "worker"])
def test_every_setting_of_an_engine_is_an_option_of_those_who_hold_one(command: str) -> None:
    options = {option.name for option in parse(command).command.params}
    assert set(EngineSettings.model_fields) - FOR_TESTS <= options


@pytest.mark.parametrize("command", ["up", "worker"])
def test_options_reach_the_settings(command: str) -> None:
    options = [
        "--mock", "--weights", "dummy", "--device", "cuda:1", "--profile", "24gb",
        "--precision", "bf16", "--attention", "fa3", "--no-compile", "--lora", "a.safetensors=0.8",
        "--fp8", "--step-cache", "0.1",
    ]  # fmt: skip
    apply_options(parse(command, *options).params)
    settings = load_settings()
    assert settings == ServerSettings(
        mock=True,
        weights="dummy",
        device="cuda:1",
        profile="24gb",
        precision="bf16",
        attention="fa3",
        compile=False,
        lora="a.safetensors=0.8",
        fp8=True,
        step_cache=0.1,
    )


def test_without_options_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCHI_COMPILE", "false")
    monkeypatch.setenv("MOCHI_PROFILE", "offload")
    apply_options(parse("worker").params)
    settings = load_settings()
    assert (settings.compile, settings.profile) == (False, "offload")
    apply_options(parse("worker", "--compile").params)
    assert load_settings().compile


def test_help_lists_the_values_that_a_setting_may_have() -> None:
    helps = {option.name: getattr(option, "help", "") for option in parse("up").command.params}
    assert "[values: auto, 80gb, 48gb, 24gb, offload] [default: auto]" in helps["profile"]


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its name, those of groups included."""
    for name in cli.COMMANDS:
        command = cli.load(name)
        for part, each in getattr(command, "commands", {"": command}).items():
            yield f"{name} {part}".strip(), each


@pytest.mark.parametrize("command", [name for name, _ in commands()])
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    helped = CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert re.search(r"^ [A-Z][\w ,-]*: .*mochi-server " + command, helped.stdout, re.MULTILINE)


def test_the_list_of_commands_says_the_same_as_their_own_help() -> None:
    for name, entry in cli.COMMANDS.items():
        assert cli.load(name).help.partition("\n")[0] == entry.summary


def test_the_help_lists_the_commands_in_panels_by_what_they_are_for() -> None:
    helped = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "100"}).stdout
    panels = re.findall(r"─ (\w+) ─.*\n│ (\w+)", helped)
    assert panels == [
        ("Run", "up"),
        ("Ask", "generate"),
        ("Administer", "keys"),
        ("Measure", "top"),
    ]


def test_a_mistyped_command_is_answered_with_the_right_one() -> None:
    result = CliRunner().invoke(cli.app, ["generat"], env={"COLUMNS": "100"})
    assert result.exit_code == 2
    assert "Did you mean 'generate'?" in result.output


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gen", "generate"),
        ("keys ro", "rotate"),
        ("up --mo", "--mock"),
        ("generate --gui", "--guidance-scale"),
    ],
)
def test_a_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    words = {"COMP_WORDS": f"mochi-server {typed}", "COMP_CWORD": str(len(typed.split()))}
    ask = {"_MOCHI_SERVER_COMPLETE": "complete_bash", **words}
    done = subprocess.run(
        [COMMAND], env=os.environ | ask, capture_output=True, text=True, timeout=60, check=True
    )
    assert offered in done.stdout.split()


def test_completion_can_be_installed(tmp_path: Path) -> None:
    environ = os.environ | {
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    install = [COMMAND, "--install-completion", "bash"]
    subprocess.run(install, env=environ, capture_output=True, timeout=60, check=True)
    assert "mochi-server" in (tmp_path / ".bashrc").read_text()


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
    assert became == [
        sys.executable, "-P", "-m", "models.mochi.bench", "--steps", "30", "--repeats", "3",
        "--frames", "49", "--frames", "160", "--compare", "stock", "--memory", "23.5",
        "--output", "out.json", "--data-dir", str(tmp_path),
    ]  # fmt: skip
    settings = load_settings()
    assert (settings.profile, settings.compile) == ("24gb", False)
    assert "weights" not in settings.model_fields_set  # random numbers, unless asked for


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


@pytest.mark.parametrize("option", ["-o", "--plot", "--trace"])
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
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    status, message = refused()
    assert status == os.EX_CONFIG
    assert "pip install 'mochi-server[worker]'" in message
