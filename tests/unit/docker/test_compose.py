"""`compose.yaml` passes on what a variable in its caller's environment, or in `.env`, asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from models.version import this_build
from server.settings import ServerSettings
from tests.images.engine import Project

ROOT = Path(__file__).parents[3]
COMPOSE = (ROOT / "compose.yaml").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]
OF_THE_IMAGES = {"MOCHI_ALIVE_FILE", "MOCHI_DATA_DIR", "MOCHI_HOST"}
WITHOUT_CONTAINERS = {"MOCHI_VALKEY"}
"""The broker is a service."""
FOR_A_LAPTOP = {
    *("MOCHI_MOCK", "MOCHI_MOCK_WEIGHTS", "MOCHI_MOCK_SPEED"),
    *("MOCHI_ENGINE", "MOCHI_FAKE_STEP_SECONDS"),
}
"""These stand in docker/compose.mock.yaml, or are for tests."""
LEFT_TO_CADDY = {"MOCHI_TLS_CERT", "MOCHI_TLS_KEY"}


def test_every_setting_is_passed_on_or_has_a_reason_not_to_be() -> None:
    """One that is not would be ignored without a word."""
    settings = {f"MOCHI_{name.upper()}" for name in ServerSettings.model_fields}
    reasons = OF_THE_IMAGES | WITHOUT_CONTAINERS | FOR_A_LAPTOP | LEFT_TO_CADDY
    assert settings - set(re.findall(r"\bMOCHI_\w+", COMPOSE)) == reasons


def test_the_trial_of_the_images_takes_no_setting_of_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    asked |= set(re.findall(r"\$\{(\w+)", COMPOSE)) - set(this_build().variables)
    for name in asked:
        monkeypatch.setenv(name, "of-the-operator")
    project = Project("docker", "trial", port=1)
    taken = {name for name, value in project.environ.items() if value == "of-the-operator"}
    assert taken & asked == {"HTTPS_PROXY", "BUILD_CREATED"}  # builds may need the proxy


@pytest.mark.parametrize("name", ["compose.yaml", "docker/compose.mock.yaml", "docs/deploy.md"])
def test_a_documented_build_is_told_its_version_first(name: str) -> None:
    assert set(this_build().variables) <= set(re.findall(r"\$\{(\w+)", COMPOSE))
    before, told, after = (ROOT / name).read_text().partition("export $(python3 -m models.version)")
    assert told
    assert "docker compose run" not in before
    assert "docker compose run" in after


def test_the_one_service_of_workers_has_every_card() -> None:
    (cards,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert cards == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_logs_are_limited_by_a_driver_that_podman_has_too() -> None:
    of_podman = {"json-file", "k8s-file", "journald", "none"}
    loggings = [service["logging"] for service in SERVICES.values()]
    assert all(logging["driver"] in of_podman for logging in loggings)
    assert all("max-size" in logging["options"] for logging in loggings)


def test_attributes_of_traces_have_a_name_that_dockers_command_does_not_overwrite() -> None:
    for service in ("gateway", "worker"):
        value = SERVICES[service]["environment"]["OTEL_RESOURCE_ATTRIBUTES"]
        assert value == "${RESOURCE_ATTRIBUTES:-}"


def test_a_broker_of_any_build_lets_gateways_and_workers_in() -> None:
    """Without a password, Valkey answers to loopback alone unless told otherwise."""
    command = SERVICES["valkey"]["command"]
    assert command[command.index("--protected-mode") + 1] == "no"
