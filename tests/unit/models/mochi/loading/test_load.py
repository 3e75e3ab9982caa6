"""Weights read from disk, and an engine that is warmed up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.engine import Engine, Traits
from models.errors import EngineUnavailableError
from models.mochi.loading.assemble import Options
from models.mochi.loading.load import _assemble_in_turn as assemble_in_turn
from models.mochi.loading.load import assemble_mock, load, read_weights, warm_up_requests
from models.mochi.loading.plan import LoadPlan
from models.mochi.memory import main_memory
from models.mochi.memory.profiles import PROFILES, MemoryPlan, ProfileName
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.network.transformer import Core
from models.mochi.parts import KEPT_IN_FLOAT32, Dtypes, Parts
from models.settings import EngineSettings
from tests.support.models.mock_mochi import CPU, frames_of, params


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much main memory as a server has, and small pictures."""
    monkeypatch.setattr("models.mochi.loading.load.WIDTH", 48)
    monkeypatch.setattr("models.mochi.loading.load.HEIGHT", 32)
    monkeypatch.setattr(main_memory, "available_gib", lambda _: (200.0, "no limit"))


def test_what_is_warmed_up_needs_every_graph() -> None:
    for chunk in (1, 2, 3):
        requests = warm_up_requests(chunk)
        latent_frames = {(request.model_frames - 1) // 6 + 1 for request in requests}
        # A shorter chunk comes first.
        assert {(frames - 1) % chunk + 1 for frames in latent_frames} == set(range(1, chunk + 1))
        assert min(latent_frames) > chunk
        assert {request.negative_prompt for request in requests} == {"", " "}


def plan_of(folder: Path, profile: ProfileName, ranks: Ranks = ALONE) -> LoadPlan:
    """Of a CPU instead of a GPU."""
    plan = MemoryPlan(PROFILES[profile], "reference", "asked for")
    options = Options(plan.profile, "flash")
    traits = Traits("Mochi 1", "a card", "reference", profile)
    return LoadPlan(CPU, plan, options, traits, folder, [], ranks)


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path, profile: ProfileName) -> Engine:
    """Load as on a GPU, though what there is is a CPU."""
    load_plan = plan_of(folder, profile)
    monkeypatch.setattr("models.mochi.loading.load.plan_loading", lambda *_, **__: load_plan)
    return load(EngineSettings(), folder)


def test_every_profile_gives_the_same_pictures(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = params(20, negative_prompt="blurry")
    first, *others = (
        torch.frombuffer(
            bytearray(b"".join(frames_of(on_a_cpu(monkeypatch, checkpoint, profile), asked))),
            dtype=torch.uint8,
        ).float()
        for profile in PROFILES
    )
    for other in others:
        # A CPU rounds convolutions of other lengths otherwise.
        assert (other - first).abs().max() <= 1
        assert (other - first).abs().mean() < 1e-3


def test_an_engine_that_fails_its_warm_up_stops_the_start_with_what_to_change(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr("models.mochi.engine.denoise", fail)
    with pytest.raises(EngineUnavailableError) as error:
        on_a_cpu(monkeypatch, checkpoint, "24gb")
    assert "does not run on a card: no kernel image" in str(error.value)
    assert "--no-compile" in str(error.value)
    assert "--profile than 24gb" in str(error.value)


def unreadable(folder: Path) -> str:
    with pytest.raises(EngineUnavailableError) as error:
        read_weights(folder, Dtypes()).read_text_encoder()
    return str(error.value)


@pytest.mark.parametrize(
    ("weights", "pickle"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_are_refused(copy: Path, weights: str, pickle: str) -> None:
    file = copy / weights
    torch.save(load_file(file), file.with_name(pickle))
    file.unlink()
    assert f"no file named {file.name}" in unreadable(copy)


@pytest.mark.parametrize(
    "file",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_damaged_weights_are_refused_with_a_way_out(copy: Path, file: str) -> None:
    os.truncate(copy / file, 100)
    message = unreadable(copy)
    assert f"The weights in {copy} cannot be loaded" in message
    assert "mochi-server weights verify" in message


def test_t5_is_read_when_the_transformer_is_in_its_place(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    parts = read_weights(checkpoint, Dtypes())
    read, place = parts.read_text_encoder, Core.place

    def note(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: object, **options: object) -> object:
            seen.append(name)
            return call(*args, **options)

        return noted

    parts.read_text_encoder = note("T5", read)
    monkeypatch.setattr(Core, "place", note("transformer", place))
    assemble_mock(parts, 0.0)
    assert seen[:2] == ["transformer", "T5"]
    assert read() is read()


def test_too_little_main_memory_is_refused_before_anything_is_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_memory, "available_gib", lambda _: (16.0, "a limit"))
    monkeypatch.setattr(Parts, "read", None)
    with pytest.raises(EngineUnavailableError, match=r"needs about 22\.5 GiB of main memory"):
        on_a_cpu(monkeypatch, checkpoint, "80gb")


def test_a_follower_neither_reads_t5_nor_needs_main_memory_for_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Ranks()
    follower.rank = 1
    monkeypatch.setattr(main_memory, "available_gib", lambda _: (23.0, "a limit"))
    (copy / "text_encoder/model.safetensors").unlink()
    engine = assemble_in_turn(plan_of(copy, "24gb", follower), EngineSettings(), tmp_path)
    assert engine.origin.endswith("T5 in torch.float32")
    with pytest.raises(EngineUnavailableError, match=r"needs about 25\.7 GiB of main memory"):
        assemble_in_turn(plan_of(copy, "24gb"), EngineSettings(), tmp_path)


def test_delicate_parameters_stay_in_float32_whatever_the_rest_is_loaded_as(
    checkpoint: Path,
) -> None:
    parts = read_weights(
        checkpoint, Dtypes(text=torch.bfloat16, transformer=torch.bfloat16, vae=torch.bfloat16)
    )
    kept = {
        name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
        for module in (parts.transformer, parts.vae)
        for name, parameter in module.named_parameters()
        if parameter.dtype == torch.float32
    }
    assert kept == set(KEPT_IN_FLOAT32)
    assert parts.text_encoder.dtype == parts.vae.dtype == torch.bfloat16


def test_a_mock_engine_is_built_in_a_fresh_process_without_noise(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from models.build import build_engine; from models.settings import EngineSettings\n"
        "from models.request.params import GenerateParams\n"
        "engine = build_engine(EngineSettings(mock=True), Path(sys.argv[1]))\n"
        "params = GenerateParams(prompt='a cat', frames=1, steps=10)\n"
        "print(len(list(engine.generate(params, lambda *step: None).frames)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")
