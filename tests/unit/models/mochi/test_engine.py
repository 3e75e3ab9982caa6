"""What Mochi's engine generates, and what it raises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import pytest
import torch
from diffusers import MochiPipeline

from models.cuda import translate_gpu_errors
from models.engine import Engine
from models.errors import EngineBrokenError, OutOfMemoryError
from models.mochi.engine import MochiEngine
from models.mochi.loading.load import load
from models.mochi.network.text_encoder import TextEncoder
from models.mochi.synthetic import mock
from models.mock.scene import Scene
from models.request.example import EXAMPLE_REQUEST
from models.request.params import HEIGHT, WIDTH, GenerateParams
from models.settings import EngineSettings
from tests.support.models.mock_mochi import CPU, bare, frames_of, ignore, params

stock = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
"""For tests that run diffusers' own transformer, whose autocast a CPU does not need."""


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 52])
def test_there_are_exactly_as_many_frames_as_asked_for(engine: Engine, frames: int) -> None:
    clip = engine.generate(params(frames), ignore)
    pictures = list(clip.frames)
    assert (clip.width, clip.height) == (WIDTH, HEIGHT)
    assert len(pictures) == frames
    assert {len(picture) for picture in pictures} == {clip.width * clip.height * 3}


def test_surplus_frames_are_dropped_from_the_end(checkpoint: Path) -> None:
    short, long = (frames_of(bare(checkpoint), params(frames)) for frames in (3, 7))
    assert short == long[:3]


def test_a_mock_video_shows_its_engines_frames_and_says_what_was_asked_for(
    engine: Engine, checkpoint: Path
) -> None:
    asked = params(3, seed=2**63 - 1, fps=23.976)
    clip = engine.generate(asked, ignore)
    assert json.loads(clip.comment) == {"mock": "mock weights"} | asked.model_dump()
    own = bare(checkpoint, mock.WIDTH, mock.HEIGHT).generate(mock.condensed(asked), ignore)
    expected = Scene(asked, "mock weights", "tiny random weights").clip(own)
    assert list(clip.frames) == list(expected.frames)


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


def test_a_prompt_that_was_encoded_during_another_video_changes_no_byte(checkpoint: Path) -> None:
    first, second = params(negative_prompt="blurry"), params(prompt="a dog", negative_prompt="dim")
    engine, worked_in = bare(checkpoint), []

    def encode(step: int, _total: int) -> None:
        if step == 5:
            assert engine.encode_ahead
            ahead = Thread(target=engine.encode_ahead, args=(second,), name="ahead")
            ahead.start()
            ahead.join()

    engine.text_encoder._encoder.register_forward_hook(
        lambda *_: worked_in.append(current_thread().name)
    )
    frames = [list(engine.generate(first, encode).frames), frames_of(engine, second)]
    here = current_thread().name
    assert worked_in == [here, here, "ahead", "ahead"]
    assert frames == [frames_of(bare(checkpoint), asked) for asked in (first, second)]


def test_nothing_is_encoded_ahead_on_the_card_that_makes_a_video(checkpoint: Path) -> None:
    encoder = bare(checkpoint).text_encoder
    meta = torch.device("meta")
    texts = TextEncoder(encoder._tokenizer, encoder._encoder, lives_on=CPU, works_on=meta)
    assert replace(bare(checkpoint), text_encoder=texts).encode_ahead is None


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
    engine = bare(checkpoint)  # its frames alone: the words around them differ anyway
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


def test_a_prompt_that_is_cut_is_reported(engine: Engine) -> None:
    clip = engine.generate(params(prompt="x" * 1017, negative_prompt="y" * 1200), ignore)
    # Of the mock, four characters are a token, and there are a start and an end mark.
    assert clip.warnings == (
        "`negative_prompt` has 302 tokens, and the text encoder reads 256: its end was left out.",
        "`prompt` has 257 tokens, and the text encoder reads 256: its end was left out.",
    )
    assert engine.generate(params(prompt="x" * 1016), ignore).warnings == ()


def test_the_example_of_the_hosted_api_is_read_to_its_end(engine: Engine) -> None:
    asked = GenerateParams.model_validate(EXAMPLE_REQUEST | {"frames": 1, "steps": 10})
    assert engine.generate(asked, ignore).warnings == ()


def test_every_character_of_a_text_matters_to_the_mock() -> None:
    text = "A red panda drinks tea"
    others = {text[:index] + "!" + text[index + 1 :] for index in range(len(text))}
    assert len({mock.condensed(params(prompt=prompt)).prompt for prompt in others}) == len(text)


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
