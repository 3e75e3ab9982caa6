from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiPipeline
from PIL import Image
from safetensors.torch import load_file

from models.build import build_engine
from models.caption import CANVAS, caption_lines, read
from models.engine import Engine
from models.errors import EngineBrokenError, EngineUnavailableError, OutOfMemoryError
from models.mochi.engine import MochiEngine
from models.mochi.load import load
from models.mochi.mock import write_mock_checkpoint
from models.params import GenerateParams
from models.settings import EngineSettings

bare = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
"""For tests that run the pipeline without `MockEngine`, which keeps this warning quiet."""

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MOCHI_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def checkpoint(cache_dir: Path) -> Path:
    return write_mock_checkpoint(cache_dir)


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> Engine:
    return load(EngineSettings(mock=True), cache_dir)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> MochiPipeline:
    return MochiPipeline.from_pretrained(checkpoint, use_safetensors=True)


def params(frames: int = 2, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": 10, **others})


def ignore(step: int, total: int) -> None:
    pass


def frames_of(engine: Engine, asked: GenerateParams) -> list[bytes]:
    return list(engine.generate(asked, ignore).frames)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Generating


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 52])
def test_there_are_exactly_as_many_frames_as_asked_for(engine: Engine, frames: int) -> None:
    clip = engine.generate(params(frames), ignore)
    pictures = list(clip.frames)
    assert (clip.width, clip.height) == CANVAS
    assert len(pictures) == frames
    assert {len(picture) for picture in pictures} == {clip.width * clip.height * 3}


def test_surplus_frames_are_dropped_from_the_end(engine: Engine) -> None:
    # Captions differ (they say how many frames there are), so compare above them.
    pixels = CANVAS[0] * 150 * 3
    short, long = (frames_of(engine, params(frames)) for frames in (3, 7))
    assert [picture[:pixels] for picture in short] == [picture[:pixels] for picture in long[:3]]


def test_a_mock_frame_says_what_was_asked_for(engine: Engine) -> None:
    asked = params(3, seed=2**63 - 1, fps=23.976, prompt="A cat on a beach")
    for number, frame in enumerate(frames_of(engine, asked), start=1):
        assert read(Image.frombytes("RGB", CANVAS, frame)) == caption_lines(asked, number)


def test_the_same_parameters_give_the_same_frames(engine: Engine) -> None:
    asked = params(seed=2**63 - 1)
    first = frames_of(engine, asked)
    frames_of(engine, params(seed=1))
    assert frames_of(engine, asked) == first


def test_the_same_parameters_give_the_same_frames_after_a_restart(
    engine: Engine, cache_dir: Path
) -> None:
    again = load(EngineSettings(mock=True), cache_dir)
    assert frames_of(again, params()) == frames_of(engine, params())


@bare
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"prompt": "a dog"},
        {"negative_prompt": "blurry"},
        {"guidance_scale": 7.5},
        {"steps": 11},
    ],
    ids=str,
)
def test_every_parameter_matters(pipeline: MochiPipeline, other: dict[str, Any]) -> None:
    engine = MochiEngine(pipeline, 32, 32)  # without captions, which would differ anyway
    assert frames_of(engine, params(**other)) != frames_of(engine, params())


@bare
def test_the_frames_are_those_of_the_stock_pipeline(pipeline: MochiPipeline) -> None:
    asked = params(7, seed=5, negative_prompt="blurry", guidance_scale=3)
    stock = pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=48,
        height=32,
        num_frames=7,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator().manual_seed(asked.seed),
    ).frames[0]
    ours = frames_of(MochiEngine(pipeline, 48, 32), asked)
    assert ours == [picture.tobytes() for picture in stock]


@pytest.mark.parametrize("steps", [10, 13])
def test_each_step_is_reported_once_and_in_order(engine: Engine, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    engine.generate(params(steps=steps), lambda *step: seen.append(step))
    assert seen == [(step, steps) for step in range(1, steps + 1)]


class Abandoned(BaseException):
    pass


def test_an_exception_from_on_step_ends_the_generation_there(engine: Engine) -> None:
    reason = Abandoned()
    steps: list[int] = []

    def abandon(step: int, total: int) -> None:
        steps.append(step)
        if step == 3:
            raise reason

    expected = frames_of(engine, params())
    with pytest.raises(Abandoned) as raised:
        engine.generate(params(frames=20), abandon)
    assert raised.value is reason
    assert steps == [1, 2, 3]
    assert frames_of(engine, params()) == expected


@bare
@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae.decoder"])
def test_running_out_of_memory_says_what_to_change_and_does_no_harm(
    pipeline: MochiPipeline, part: str
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 31.00 GiB.")

    engine = MochiEngine(pipeline, 32, 32)
    owner, _, child = part.partition(".")
    module = getattr(pipeline, owner)
    module = getattr(module, child) if child else module
    expected = frames_of(engine, params())
    hook = module.register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(OutOfMemoryError) as error:
            engine.generate(params(frames=160), ignore)
    finally:
        hook.remove()
    assert str(error.value) == (
        "The GPU has too little memory for 160 frames. Ask for fewer frames."
    )
    assert error.value.code == "out_of_memory"
    assert frames_of(engine, params()) == expected


@bare
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_gpu_that_fails_is_told_from_a_request_that_does(
    pipeline: MochiPipeline, error: RuntimeError
) -> None:
    def fail(*_: object) -> None:
        raise error

    hook = pipeline.transformer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(EngineBrokenError) as raised:
            MochiEngine(pipeline, 32, 32).generate(params(), ignore)
    finally:
        hook.remove()
    assert raised.value.__cause__ is error


def test_loading_and_generating_write_nothing_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    engine = load(EngineSettings(mock=True), tmp_path)
    frames_of(engine, params(prompt="a long prompt " * 280, negative_prompt="猫 " * 2000))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_an_engine_says_what_runs_where(engine: Engine) -> None:
    assert engine.description == "mock weights, Mochi 1, float32, CPU"


# The mock checkpoint


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


# Loading


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many CUDA devices there seem to be."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def refusal(tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(EngineUnavailableError) as error:
        build_engine(EngineSettings(**settings), tmp_path)
    return str(error.value)


NO_GPU = "There is no CUDA device here"
NO_REVISION = "MOCHI_REVISION=<its 40 hex digits>"
TRY_MOCK = "mochi-server up --mock"


def test_without_gpu_and_weights_both_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    message = refusal(tmp_path)
    assert NO_GPU in message
    assert NO_REVISION in message
    assert "https://huggingface.co/genmo/mochi-1-preview/commits/main" in message
    assert "MOCHI_WEIGHTS=/path/to/folder" in message
    assert TRY_MOCK in message


def test_with_weights_only_the_missing_gpu_is_named(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    for settings in ({"weights": str(copy)}, {"revision": REVISION}):
        message = refusal(tmp_path, **settings)
        assert NO_GPU in message
        assert TRY_MOCK in message
        assert "MOCHI_WEIGHTS" not in message
        assert "MOCHI_REVISION" not in message


def test_with_a_gpu_only_the_missing_weights_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(1)
    message = refusal(tmp_path)
    assert NO_GPU not in message
    assert NO_REVISION in message


def test_a_device_that_does_not_exist_is_named(tmp_path: Path, gpus: Callable[[int], None]) -> None:
    gpus(2)
    message = refusal(tmp_path, device="cuda:2", revision=REVISION)
    assert "MOCHI_DEVICE=cuda:2 does not exist: the last one here is cuda:1." in message


@pytest.mark.parametrize("weights", ["/no/such/folder", "./weights", "../weights", "weights"])
def test_a_folder_that_does_not_exist_is_not_taken_for_a_hub_id(
    tmp_path: Path, gpus: Callable[[int], None], weights: str
) -> None:
    gpus(1)
    assert f"There is no folder MOCHI_WEIGHTS={weights}." in refusal(tmp_path, weights=weights)


@pytest.mark.parametrize("part", ["model_index.json", "tokenizer", "transformer"])
def test_a_folder_that_lacks_a_part_is_refused_by_the_parts_name(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], part: str
) -> None:
    gpus(1)
    (copy / part).rename(tmp_path / "elsewhere")
    assert f"MOCHI_WEIGHTS={copy} lacks {part}:" in refusal(tmp_path, weights=str(copy))


@pytest.mark.parametrize(
    ("weights", "pickle"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_are_refused(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], weights: str, pickle: str
) -> None:
    gpus(1)
    file = copy / weights
    torch.save(load_file(file), file.with_name(pickle))
    file.unlink()
    message = refusal(tmp_path, weights=str(copy))
    assert f"no file named {file.name}" in message


@pytest.mark.parametrize(
    "file",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "model_index.json",
    ],
)
def test_a_download_that_broke_off_is_refused(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], file: str
) -> None:
    gpus(1)
    os.truncate(copy / file, 100)
    message = refusal(tmp_path, weights=str(copy))
    assert f"The weights {copy} cannot be loaded" in message
    assert "If a download broke off" in message


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_way_out(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(tmp_path, revision=REVISION)
    assert "The weights genmo/mochi-1-preview cannot be loaded" in message
    assert "MOCHI_WEIGHTS=/path/to/folder" in message


def test_weights_that_do_not_fit_on_the_gpu_are_an_error(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    gpus(1)
    monkeypatch.setattr(MochiPipeline, "to", exhausted)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 2**30, 24 * 2**30))
    message = refusal(tmp_path, weights=str(copy))
    assert "do not fit on cuda: 20 of its 24 GiB are free" in message


def test_a_mock_engine_is_built_in_a_fresh_process_without_noise(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from models.build import build_engine; from models.settings import EngineSettings\n"
        "from models.params import GenerateParams\n"
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
