from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.build import build_energy_counter, build_engine, build_meter
from models.cuda import CudaEnergy, CudaMeter
from models.errors import EngineUnavailableError
from models.mock.fake_engine import FakeEngine
from models.settings import EngineSettings

BLOCKED = ["torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "imageio_ffmpeg"]

BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MOCHI_"):
            monkeypatch.delenv(name)


def run_blocked(code: str) -> str:
    """Run code where the worker's libraries are not installed; what it prints."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout


def test_the_fake_engine_can_be_asked_for(tmp_path: Path) -> None:
    engine = build_engine(EngineSettings(engine="fake", fake_step_seconds=0.5), tmp_path)
    assert isinstance(engine, FakeEngine)
    assert str(engine.traits) == "light mock, CPU"


def test_the_mock_is_the_light_one_where_a_library_of_the_real_engine_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not EngineSettings(mock=True).is_light_mock
    monkeypatch.setitem(sys.modules, "torch", None)
    assert isinstance(build_engine(EngineSettings(mock=True), tmp_path), FakeEngine)
    assert not EngineSettings(mock=True, mock_weights=True).is_light_mock


@pytest.mark.parametrize(
    ("setting", "extra", "what"),
    [
        ("mock_weights=True", "worker", "missing: torch, diffusers, "),
        ("engine='fake'", "mock", "No module named 'numpy'"),
    ],
)
def test_an_engine_without_its_libraries_says_what_to_install(
    setting: str, extra: str, what: str
) -> None:
    code = f"""
from pathlib import Path
from typing import Any
from models.build import build_engine
from models.errors import EngineUnavailableError
from models.settings import EngineSettings
try:
    build_engine(EngineSettings({setting}), Path())
except EngineUnavailableError as error:
    print(error)
"""
    printed = run_blocked(code)
    assert f"pip install -c constraints.txt '.[{extra}]'" in printed
    assert f"({what}" in printed
    assert ("PIP_EXTRA_INDEX_URL" in printed) == (extra == "worker")


def test_python_without_docstrings_is_refused_with_the_remedy() -> None:
    code = (
        "from pathlib import Path\n"
        "from models.build import build_engine\n"
        "from models.settings import EngineSettings\n"
        "build_engine(EngineSettings(mock=True), Path())"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "EngineUnavailableError: Python leaves out docstrings" in done.stderr


@pytest.mark.parametrize(
    ("device", "gpus", "cards"),
    [("cuda", 1, ["cuda:0"]), ("cuda:1", 1, ["cuda:1"]), ("cuda:2", 2, ["cuda:2", "cuda:3"])],
)
def test_the_meter_reads_every_card_of_a_group(device: str, gpus: int, cards: list[str]) -> None:
    meter = build_meter(EngineSettings(device=device, gpus_per_video=gpus))
    assert isinstance(meter, CudaMeter)
    assert list(map(str, meter.cards)) == cards
    counter = build_energy_counter(EngineSettings(device=device, gpus_per_video=gpus))
    assert isinstance(counter, CudaEnergy)
    assert list(map(str, counter.cards)) == cards


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "dummy"}, {"mock": True, "gpus_per_video": 2}]
)
def test_one_worker_runs_one_model_with_real_weights_or_in_a_group(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailableError) as refused:
        build_engine(EngineSettings(models="mochi-1,mochi-1-fast", **settings), tmp_path)
    assert str(refused.value).endswith(
        "Start a worker for each: MOCHI_MODELS=mochi-1, MOCHI_MODELS=mochi-1-fast."
    )


def test_the_light_mock_runs_all_models(tmp_path: Path) -> None:
    settings = EngineSettings(engine="fake", fake_step_seconds=0, models="mochi-1,mochi-1-fast")
    engine = build_engine(settings, tmp_path)
    seen = []
    for model in settings.served:
        asked = model.parameters(prompt="a pond", frames=1, steps=10, guidance_scale=2)
        clip = engine.generate(asked, lambda _step, _steps: None)
        seen.append((json.loads(clip.comment).get("model"), *clip.frames))
    (none, slow), (slug, fast) = seen
    assert (none, slug) == (None, "mochi-1-fast")
    assert slow != fast


def test_mock_weights_have_no_meter() -> None:
    assert build_meter(EngineSettings(mock=True)) is None
    assert build_energy_counter(EngineSettings(mock=True)) is None
