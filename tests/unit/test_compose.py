"""`compose.yaml` passes on what a variable in its caller's environment, or in `.env`, asks for."""

from __future__ import annotations

import re
from pathlib import Path

from server.settings import ServerSettings

COMPOSE = (Path(__file__).parents[2] / "compose.yaml").read_text()
OF_THE_IMAGES = {"MOCHI_ALIVE_FILE", "MOCHI_DATA_DIR", "MOCHI_HOST"}
WITHOUT_CONTAINERS = {"MOCHI_VALKEY", "MOCHI_WORKERS"}
"""The broker is a service, and one service is one worker."""
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
