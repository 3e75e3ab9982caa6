"""The mock checkpoint: small, without pickles, with the same bytes everywhere."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import MochiPipeline

from models.engine import Engine
from models.errors import EngineUnavailableError
from models.mochi.loading.load import load
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.request.catalogue import FAST_MOCHI, MOCHI, Model
from models.settings import EngineSettings
from tests.support.models.mock_mochi import files


def test_the_mock_checkpoint_has_the_same_bytes_everywhere(
    tmp_path: Path, checkpoint: Path
) -> None:
    torch.manual_seed(12345)  # must not matter
    assert files(write_mock_checkpoint(tmp_path)) == files(checkpoint)


def test_the_mock_checkpoint_is_small_and_has_no_pickles(checkpoint: Path) -> None:
    written = files(checkpoint)
    assert sum(map(len, written.values())) < 4_000_000
    assert {Path(name).suffix for name in written} == {".json", ".safetensors"}


def test_the_mock_checkpoint_is_configured_as_mochi_is(pipeline: MochiPipeline) -> None:
    assert pipeline.scheduler.config.invert_sigmas
    assert pipeline.tokenizer_max_length == 256
    assert pipeline.vae.config.latent_channels == pipeline.transformer.config.in_channels == 12
    assert pipeline.vae.temporal_compression_ratio == 6
    assert pipeline.vae.spatial_compression_ratio == 8


def test_no_mock_parameter_is_left_at_its_start_value(pipeline: MochiPipeline) -> None:
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        for name, parameter in module.named_parameters():
            assert parameter.std() > 0, name


def test_a_present_mock_checkpoint_is_reused(tmp_path: Path) -> None:
    folder = write_mock_checkpoint(tmp_path)
    mark = folder / "mark"
    mark.touch()
    assert write_mock_checkpoint(tmp_path) == folder
    assert mark.exists()


def test_each_model_has_mock_weights_of_its_own(tmp_path: Path) -> None:
    own, fast = write_mock_checkpoint(tmp_path), write_mock_checkpoint(tmp_path, FAST_MOCHI)
    assert own.name == "mock-mochi-2"  # as releases with one model have written it
    assert files(own).keys() == files(fast).keys()
    weights = [name for name in files(own) if name.endswith(".safetensors")]
    assert all(files(own)[name] != files(fast)[name] for name in weights)


def test_an_engine_of_several_models_runs_each_with_its_own_weights(tmp_path: Path) -> None:
    engine = load(EngineSettings(mock=True, models="mochi-1,mochi-1-fast"), tmp_path)
    alone = load(EngineSettings(mock=True, models="mochi-1-fast"), tmp_path)

    def frames(engine: Engine, model: Model) -> list[bytes]:
        asked = model.parameters(prompt="a pond", frames=1, steps=10, guidance_scale=2)
        return list(engine.generate(asked, lambda _step, _steps: None).frames)

    assert frames(engine, MOCHI) != frames(engine, FAST_MOCHI)
    assert frames(engine, FAST_MOCHI) == frames(alone, FAST_MOCHI)


def test_a_data_folder_that_the_mock_checkpoint_makes_is_private(tmp_path: Path) -> None:
    write_mock_checkpoint(tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_several_may_write_the_mock_checkpoint_at_once(tmp_path: Path, checkpoint: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(write_mock_checkpoint, [tmp_path / "new"] * 4))
    assert len(folders) == 1
    assert files(folders.pop()) == files(checkpoint)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_failed_write_of_the_mock_checkpoint_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MochiPipeline, "save_pretrained", full)
    with pytest.raises(EngineUnavailableError, match="No space left on device"):
        load(EngineSettings(mock=True), tmp_path)
    assert not list(tmp_path.iterdir())
