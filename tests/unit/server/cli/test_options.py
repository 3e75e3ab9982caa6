"""Options are settings under another name. What the commands do, `test_up.py` tests."""

from __future__ import annotations

import os
from typing import Any

import pytest

from models.settings import EngineSettings
from server.cli import main as cli
from server.cli.options import apply_options
from server.settings import ServerSettings, load_settings

NO_SETTINGS = {"check", "help", "opens_page"}
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
        "--mock", "--mock-weights", "--weights", "dummy", "--device", "cuda:1", "--profile", "24gb",
        "--precision", "bf16", "--attention", "fa3", "--no-compile", "--lora", "a.safetensors=0.8",
        "--fp8", "--step-cache", "0.1",
    ]  # fmt: skip
    apply_options(parse(command, *options).params)
    settings = load_settings()
    assert settings == ServerSettings(
        mock=True,
        mock_weights=True,
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
