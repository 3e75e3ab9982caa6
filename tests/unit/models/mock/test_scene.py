"""The pictures and the comment of the mock's videos."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.engine import Clip
from models.mock.scene import INSET, Scene
from models.mock.words import BADGE, MARGIN, PROMPT, words
from models.request.example import EXAMPLE_REQUEST
from models.request.params import HEIGHT, WIDTH, GenerateParams
from models.video.encoding import encode

MOST_BYTES = 200_000


def params(
    prompt: str = "A red panda drinks tea", frames: int = 2, **others: Any
) -> GenerateParams:
    return GenerateParams(prompt=prompt, frames=frames, **others)


def scene(asked: GenerateParams) -> Scene:
    return Scene(asked, "light mock", "drawn without a model")


def frames_of(asked: GenerateParams) -> list[bytes]:
    return list(scene(asked).clip().frames)


def pixels(frame: bytes) -> NDArray[np.int16]:
    return np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(np.int16)


@pytest.mark.parametrize("frames", [1, 7, 52])
def test_a_clip_has_the_size_and_the_number_of_frames_of_the_video(frames: int) -> None:
    clip = scene(params(frames=frames)).clip()
    assert (clip.width, clip.height) == (WIDTH, HEIGHT)
    assert [len(frame) for frame in clip.frames] == [WIDTH * HEIGHT * 3] * frames


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "A red panda drinks coffee"},
        {"prompt": 60 * "A red panda drinks tea. " + "Why?"},  # its end is not shown
        {"negative_prompt": "blurry"},
        {"guidance_scale": 4.6},
        {"frames": 3},
        {"steps": 31},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_frame_differs_with_each_parameter_and_with_nothing_else(
    other: dict[str, Any],
) -> None:
    prompt = 60 * "A red panda drinks tea. " if len(str(other)) > 100 else params().prompt
    asked = params(prompt)
    frames = frames_of(asked)
    assert frames_of(asked) == frames
    changed = frames_of(asked.model_copy(update=other))
    assert not {*frames} & {*changed}


def test_fps_changes_no_frame() -> None:
    assert frames_of(params(frames=3, fps=7.5)) == frames_of(params(frames=3))


def test_every_frame_of_the_longest_video_is_different() -> None:
    assert len(set(frames_of(params(frames=160)))) == 160


@pytest.mark.parametrize(
    "asked",
    [EXAMPLE_REQUEST, *({"prompt": "a cat in the snow", "seed": seed} for seed in range(3))],
    ids=["example", "0", "1", "2"],
)
def test_a_video_is_small(asked: dict[str, Any], tmp_path: Path) -> None:
    encode(scene(GenerateParams(**asked)).clip(), 16, tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").stat().st_size < MOST_BYTES


def test_its_comment_in_the_file_has_every_parameter(tmp_path: Path) -> None:
    asked = params('猫; \\ "a" = #1 d\u2019été\n\tline two ' * 90, negative_prompt="猫" * 4000)
    encode(scene(asked).clip(), 16, tmp_path / "video.mp4")
    with av.open(tmp_path / "video.mp4") as file:
        assert json.loads(file.metadata["comment"]) == {"mock": "light mock"} | asked.model_dump()


@pytest.mark.parametrize("prompt", ["W", "猫が雪の中を走る", "x" * 4000, "long words " * 300])
def test_words_keep_to_the_margins(prompt: str) -> None:
    asked = params(prompt, seed=2**63 - 1, fps=23.976, guidance_scale=7.123456789)
    mask = words(asked, "tiny random weights")
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    assert MARGIN - left in {0, 1}  # an x begins a pixel before its place
    assert (top, right) == (BADGE[1], WIDTH - MARGIN)
    assert bottom < HEIGHT


def test_a_short_prompt_is_large_and_a_long_one_legible_still() -> None:
    def height(prompt: str) -> int:
        _, top, _, bottom = words(params(prompt), "").crop(PROMPT).getbbox() or (0, 0, 0, 0)
        return bottom - top

    assert height("HIGH") > 40
    assert height("H" * 60) > 15


def test_a_preview_is_small_and_nearer_to_the_picture_with_every_step() -> None:
    asked = params(steps=30)
    there = scene(asked)
    pictures = [Image.open(io.BytesIO(there.preview(step))) for step in (5, 15, 25, 30)]
    assert {picture.size for picture in pictures} == {(WIDTH // 4, HEIGHT // 4)}
    assert max(len(there.preview(step)) for step in (5, 15, 25)) < 8000
    *forming, last = (np.asarray(picture, np.int16) for picture in pictures)
    distances = [np.abs(picture - last).mean() for picture in forming]
    assert distances == sorted(distances, reverse=True)


def test_the_frames_of_an_engine_stay_visible_in_the_corner_alone() -> None:
    left, top, right, bottom = INSET
    seen = []
    for value in (0, 255):
        engine = Clip(80, 48, iter([bytes([value]) * 80 * 48 * 3] * 2), ("a warning",))
        clip = scene(params()).clip(engine)
        assert clip.warnings == ("a warning",)
        seen.append([pixels(frame) for frame in clip.frames])
    for black, white in zip(*seen, strict=True):
        difference = white - black
        assert difference[top:bottom, left:right].min() > 100
        difference[top:bottom, left:right] = 0
        assert not difference.any()


def test_an_error_of_the_engine_comes_through() -> None:
    def stop() -> bytes:
        raise KeyboardInterrupt

    frames = iter(stop, b"")
    with pytest.raises(KeyboardInterrupt):
        list(scene(params()).clip(Clip(80, 48, frames)).frames)
