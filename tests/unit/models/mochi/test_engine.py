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
from models.cuda import translate_gpu_errors
from models.engine import Engine, Traits
from models.errors import EngineBrokenError, EngineUnavailableError, OutOfMemoryError
from models.mochi.engine import MochiEngine
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.load import load, read_weights, warm_up_requests
from models.mochi.loading.plan import LoadPlan, plan_loading
from models.mochi.memory.profiles import PROFILES, MemoryPlan, ProfileName
from models.mochi.parts import KEPT_IN_FLOAT32, Dtypes, Parts
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.mock.caption import CANVAS, caption_lines
from models.params import GenerateParams
from models.settings import EngineSettings
from tests.support.captions import read

stock = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
"""For tests that run diffusers' own transformer, whose autocast a CPU does not need."""

CPU = torch.device("cpu")
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
    return Parts.read(checkpoint, Dtypes()).pipeline()


def bare(checkpoint: Path, width: int = 32, height: int = 32) -> MochiEngine:
    """The mock's engine, without captions."""
    options = Options(PROFILES["80gb"], "flash")
    traits = Traits("mock weights", "CPU", "float32")
    parts = Parts.read(checkpoint, Dtypes())
    return assemble(parts, options, traits, CPU, (width, height))


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
def test_every_parameter_matters(checkpoint: Path, other: dict[str, Any]) -> None:
    engine = bare(checkpoint)  # without captions, which would differ anyway
    assert frames_of(engine, params(**other)) != frames_of(engine, params())


@stock
@pytest.mark.parametrize("negative_prompt", ["", "blurry"])
def test_the_frames_are_those_of_the_stock_pipeline(
    checkpoint: Path, pipeline: MochiPipeline, negative_prompt: str
) -> None:
    asked = params(7, seed=5, negative_prompt=negative_prompt, guidance_scale=3)
    theirs = pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=48,
        height=32,
        num_frames=7,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="pt",
    ).frames[0]
    ours = frames_of(bare(checkpoint, 48, 32), asked)
    expected = theirs.permute(0, 2, 3, 1).mul(255).round()
    found = torch.stack([torch.frombuffer(bytearray(frame), dtype=torch.uint8) for frame in ours])
    difference = (found.view(expected.shape) - expected).abs()
    # Both are right to the last bits of float32, which now and then decide how a value is rounded.
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("steps", [10, 13])
def test_each_step_is_reported_once_and_in_order(engine: Engine, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    engine.generate(params(steps=steps), lambda *step: seen.append(step))
    assert seen == [(step, steps) for step in range(steps + 1)]


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
    assert steps == [0, 1, 2, 3]
    assert frames_of(engine, params()) == expected


@pytest.mark.parametrize("part", ["text encoder", "transformer", "decoder"])
def test_running_out_of_memory_says_what_to_change_and_does_no_harm(
    checkpoint: Path, part: str
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 31.00 GiB.")

    engine = bare(checkpoint)
    expected = frames_of(engine, params())
    hook = _module(engine, part).register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(OutOfMemoryError) as error:
            frames_of(engine, params(frames=160, prompt="another cat"))
    finally:
        hook.remove()
    assert str(error.value) == (
        "The GPU has too little memory for 160 frames. Ask for fewer frames, or start the worker "
        "with MOCHI_PROFILE=48gb."
    )
    assert error.value.code == "out_of_memory"
    assert frames_of(engine, params()) == expected


def _module(engine: MochiEngine, part: str) -> torch.nn.Module:
    modules: dict[str, torch.nn.Module] = {
        "text encoder": engine.text_encoder._encoder,
        "transformer": engine.core.blocks[1],
        "decoder": engine.decoder._decoder,
    }
    return modules[part]


@pytest.mark.parametrize("part", ["transformer", "decoder"])
def test_a_gpu_that_fails_is_told_from_a_request_that_does(checkpoint: Path, part: str) -> None:
    error = torch.AcceleratorError("an illegal memory access was encountered")

    def fail(*_: object) -> None:
        raise error

    engine = bare(checkpoint)
    _module(engine, part).register_forward_pre_hook(fail)
    with pytest.raises(EngineBrokenError) as raised:
        frames_of(engine, params())
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 31.00 GiB."),
    ],
)
def test_a_full_memory_is_no_broken_gpu_whatever_reports_it(error: RuntimeError) -> None:
    with pytest.raises(torch.OutOfMemoryError), translate_gpu_errors(torch.device("cuda")):
        raise error


@pytest.mark.parametrize("is_broken", [True, False])
def test_whether_a_gpu_is_broken_is_found_by_asking_it(
    monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    def answer(_: torch.device) -> None:
        if is_broken:
            raise RuntimeError("CUDA driver error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", answer)
    expected = EngineBrokenError if is_broken else RuntimeError
    with pytest.raises(expected), translate_gpu_errors(torch.device("cuda")):
        raise RuntimeError("Triton Error [CUDA]: an error")


def test_what_is_warmed_up_needs_every_graph() -> None:
    for chunk in (1, 2, 3):
        requests = warm_up_requests(chunk)
        latent_frames = {(request.model_frames - 1) // 6 + 1 for request in requests}
        # A shorter chunk comes first.
        assert {(frames - 1) % chunk + 1 for frames in latent_frames} == set(range(1, chunk + 1))
        assert min(latent_frames) > chunk
        assert {request.negative_prompt for request in requests} == {"", " "}


def test_a_named_card_has_an_index_and_settings_reach_the_engine(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    gpus(2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 * 2**30, 48 * 2**30))
    monkeypatch.setattr("models.mochi.network.attention._runs", lambda *_: True)
    for name in ("PYTORCH_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "/elsewhere")
        monkeypatch.delenv(name)
    for device, index in (("cuda", 0), ("cuda:1", 1)):
        settings = EngineSettings(weights="dummy", device=device, step_cache=0.1, compile=False)
        load_plan = plan_loading(settings, tmp_path, tmp_path / "compiled")
        assert chosen[-1] == load_plan.device == torch.device("cuda", index)
        assert str(load_plan.traits) == (
            "dummy weights, a card, reference, 48gb, lossy: step cache 0.1"
        )
        assert load_plan.options.kernel == "cudnn"
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path / "compiled" / "cudnn"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "a card is too old" in refusal(tmp_path, weights="dummy", compile=False)


def test_a_prompt_that_is_cut_is_reported(engine: Engine) -> None:
    clip = engine.generate(params(prompt="x" * 255, negative_prompt="y" * 300), ignore)
    # Of the mock, each character is a token, and there are a start and an end mark.
    assert clip.warnings == (
        "`negative_prompt` has 302 tokens, and the text encoder reads 256: its end was left out.",
        "`prompt` has 257 tokens, and the text encoder reads 256: its end was left out.",
    )
    assert engine.generate(params(prompt="x" * 254), ignore).warnings == ()


def test_the_step_cache_is_named_as_lossy_and_changes_the_picture(cache_dir: Path) -> None:
    exact = load(EngineSettings(mock=True), cache_dir)
    cached = load(EngineSettings(mock=True, step_cache=1), cache_dir)
    assert exact.traits.lossy == ()
    assert cached.traits.lossy == ("step cache 1",)
    assert frames_of(cached, params()) != frames_of(exact, params())


def test_loading_and_generating_write_nothing_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    engine = load(EngineSettings(mock=True), tmp_path)
    frames_of(engine, params(prompt="a long prompt " * 280, negative_prompt="猫 " * 2000))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_an_engine_says_what_runs_where(engine: Engine) -> None:
    assert str(engine.traits) == "mock weights, CPU, float32"


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
NO_WEIGHTS = "mochi-server weights pull"
TRY_MOCK = "mochi-server up --mock"


def test_without_gpu_and_weights_both_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    message = refusal(tmp_path)
    assert NO_GPU in message
    assert NO_WEIGHTS in message
    assert TRY_MOCK in message


def test_with_weights_only_the_missing_gpu_is_named(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    for weights in (str(copy), "dummy"):
        message = refusal(tmp_path, weights=weights)
        assert NO_GPU in message
        assert TRY_MOCK in message
        assert NO_WEIGHTS not in message
        assert "MOCHI_WEIGHTS" not in message


def test_with_a_gpu_only_the_missing_weights_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(1)
    message = refusal(tmp_path, revision=REVISION)
    assert NO_GPU not in message
    assert NO_WEIGHTS in message
    assert REVISION in message


def test_a_device_that_cuda_cannot_use_is_no_bug(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: torch.device) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    gpus(1)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    message = refusal(tmp_path, weights="dummy", compile=False)
    assert "cuda cannot be used: The NVIDIA driver on your system is too old" in message


def test_a_missing_compiler_is_named_unless_nothing_is_compiled(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "apt install gcc python3-dev" in refusal(tmp_path)
    assert "gcc" not in refusal(tmp_path, compile=False)


def test_loras_that_are_not_there_are_named_before_anything_is_read(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None]
) -> None:
    gpus(1)
    message = refusal(tmp_path, weights=str(copy), lora="/no/such.safetensors")
    assert "There is no file /no/such.safetensors, which MOCHI_LORA names." in message
    assert "'nonsense', which is not a LoRA" in refusal(
        tmp_path, weights=str(copy), lora="nonsense"
    )


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


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "transformer"])
def test_a_folder_that_lacks_a_part_is_refused_by_the_parts_name(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], part: str
) -> None:
    gpus(1)
    (copy / part).rename(tmp_path / "elsewhere")
    assert f"MOCHI_WEIGHTS={copy} lacks {part}:" in refusal(tmp_path, weights=str(copy))


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path, profile: ProfileName) -> Engine:
    """Load as on a GPU, though what there is is a CPU, and the pictures are small."""
    plan = MemoryPlan(PROFILES[profile], "reference", "asked for")
    options = Options(plan.profile, "flash")
    traits = Traits("Mochi 1", "a card", "reference", profile)
    load_plan = LoadPlan(CPU, plan, options, traits, folder, loras=[])
    monkeypatch.setattr("models.mochi.loading.load.plan_loading", lambda *_: load_plan)
    monkeypatch.setattr("models.mochi.loading.load.WIDTH", 48)
    monkeypatch.setattr("models.mochi.loading.load.HEIGHT", 32)
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
        read_weights(folder, Dtypes())
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


def test_delicate_parameters_stay_in_float32_whatever_the_rest_is_loaded_as(
    checkpoint: Path,
) -> None:
    parts = read_weights(
        checkpoint, Dtypes(text=torch.bfloat16, transformer=torch.bfloat16, vae=torch.bfloat16)
    )
    kept = {
        name.split(".")[-2 if name.endswith("weight") else -1]
        for name, parameter in parts.transformer.named_parameters()
        if parameter.dtype == torch.float32
    }
    assert kept == set(KEPT_IN_FLOAT32)
    assert parts.text_encoder.dtype == parts.vae.dtype == torch.bfloat16


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
