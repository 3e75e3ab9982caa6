"""The commands: their help, their completion, and that each has its module."""

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

from server.cli import main as cli
from tests.support.stack import COMMAND


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


@pytest.mark.parametrize(
    "module", ["models.py", "models/__init__.py", "server.py", "worker.py", "redis.py"]
)
def test_a_module_in_the_place_of_one_of_our_packages_is_named(module: str, tmp_path: Path) -> None:
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).touch()
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "mochi_server", "keys", "list"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(str(tmp_path / module))
    assert done.stderr.count("\n") == 1


def test_the_options_of_a_wrapped_program_are_its_own() -> None:
    command = cli.load("wrap")
    for typed in (["curl", "-sS", "--url", "x"], ["--", "curl", "-sS", "--url", "x"]):
        assert command.make_context("wrap", typed).params["command"] == typed[-4:]
    assert command.make_context("wrap", ["--url", "a", "curl"]).params["url"] == "a"
