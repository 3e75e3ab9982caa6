"""What `mochi-server up` does about weights before it starts anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import WeightsError
from models.weights.folder import find
from server.cli.administer.weights import (
    fetch_missing,
    has_nvidia_gpu,
    pull_weights,
    weights,
)
from tests.support.services.hub import FIRST, HUB_ID, FakeHub, fake_hub_here
from worker.settings import WorkerSettings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub_here(monkeypatch) as hub:
        yield hub


def settings(tmp_path: Path, **values: object) -> WorkerSettings:
    own = {"data_dir": tmp_path / "data", "weights": HUB_ID, "mock": False, "engine": "mochi"}
    return WorkerSettings.model_validate(own | {"revision": ""} | values)


def never() -> bool:
    raise AssertionError("nothing is to be fetched, so no GPU is looked for")


def test_missing_weights_are_pulled_once(hub: FakeHub, tmp_path: Path) -> None:
    fetch_missing(settings(tmp_path), lambda: True)
    folder = find(HUB_ID, "", tmp_path / "data")
    assert folder is not None
    assert folder.name == FIRST
    hub.requests.clear()
    fetch_missing(settings(tmp_path), never)
    assert hub.requests == []


def test_without_a_gpu_nothing_is_fetched_and_the_mock_is_offered(
    hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"no NVIDIA GPU.* mochi-server up --mock"):
        fetch_missing(settings(tmp_path), lambda: False)
    assert hub.requests == []


@pytest.mark.parametrize(
    "values",
    [
        *({"mock": True}, {"mock_weights": True}, {"engine": "fake"}),
        *({"weights": "dummy"}, {"weights": "/nowhere"}),
    ],
)
def test_what_needs_no_weights_of_the_hub_fetches_none(
    hub: FakeHub, tmp_path: Path, values: dict[str, object]
) -> None:
    fetch_missing(settings(tmp_path, **values), never)
    fetch_missing(settings(tmp_path, weights=str(tmp_path)), never)
    assert hub.requests == []


def test_a_gpu_is_seen_by_its_device_or_by_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")
    for name, is_gpu in (("nvidiactl", False), ("nvidia3", True), ("dxg", True)):
        devices = tmp_path / name
        devices.mkdir()
        tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
        tool.chmod(0o755)
        (devices / name).touch()
        assert has_nvidia_gpu(devices) is is_gpu
    tool.write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    assert has_nvidia_gpu(tmp_path / "nvidiactl")


@pytest.mark.parametrize("command", ["pull", "verify", "path"])
def test_a_command_for_the_weights_of_one_model_does_not_choose_among_several(
    hub: FakeHub, tmp_path: Path, command: str
) -> None:
    """Gateways have such a setting, and their machine may be where the weights are pulled."""
    variables = {"MOCHI_MODELS": "mochi-1,mochi-1-fast", "MOCHI_DATA_DIR": str(tmp_path)}
    refused = CliRunner().invoke(weights, [command], env=variables | {"COLUMNS": "200"})
    assert refused.exit_code == 1
    assert "Say which: --models mochi-1 or --models mochi-1-fast." in " ".join(
        refused.output.split()
    )
    assert hub.requests == []


def test_weights_that_are_named_are_pulled_whatever_the_models(
    hub: FakeHub, tmp_path: Path
) -> None:
    """Such as a classifier's."""
    own = settings(tmp_path, models="mochi-1-fast,mochi-1", weights=HUB_ID)
    assert pull_weights(own).name == FIRST
