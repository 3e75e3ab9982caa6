"""The stages of moderation: the prompt, then a sample of the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models.build import build_engine
from models.engine import Clip
from models.errors import ContentBlockedError
from models.mock.fake_engine import FakeEngine
from models.moderation.stages import sample
from models.request.params import GenerateParams
from models.settings import EngineSettings
from models.video.encoding import encode
from tests.support.models.classifiers import write_image_classifier
from tests.support.models.moderation import BLACK, WHITE, frame_judge, moderation


def test_by_default_nothing_is_judged_and_frames_pass_untouched() -> None:
    with capture_logs() as log:
        nothing = moderation()
    assert log == []
    nothing.check_prompt("whatever")
    clip = Clip(106, 60, iter([WHITE]))
    assert nothing.moderated(clip, 1) is clip


def test_the_log_says_what_is_on(folders: Path, tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("spoiler")
    with capture_logs() as log:
        both = moderation(
            moderation_terms=str(terms),
            moderation_text=str(folders / "classifier"),
            moderation_frames=str(folders / "images"),
        )
    assert log[-1]["prompt"] == ["terms", "text"]
    assert log[-1]["frames"] is True
    for prompt, category in (("a spoiler", "term list"), ("a bomb", "violence")):
        with pytest.raises(ContentBlockedError) as error:
            both.check_prompt(prompt)
        assert (error.value.stage, error.value.category) == ("prompt", category)
        assert str(error.value) == f"Moderation has blocked the prompt: {category}."
        assert error.value.code == "content_blocked"
    both.check_prompt("a pond")


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [
        (1, 8, {0}),
        (2, 8, {0, 1}),
        (8, 8, set(range(8))),
        (160, 160, set(range(160))),
        (52, 2, {0, 51}),
        (51, 3, {0, 25, 50}),
    ],
)
def test_a_sample_has_the_first_and_the_last_and_is_even(
    count: int, wanted: int, chosen: set[int]
) -> None:
    assert sample(count, wanted) == chosen


def test_a_sample_has_as_many_frames_as_were_asked_for() -> None:
    for count in range(1, 161):
        for wanted in range(2, 161):
            assert len(sample(count, wanted)) == min(count, wanted)


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_a_bad_frame_ends_the_clip_where_it_is(folders: Path, bad: int) -> None:
    watching = moderation(
        moderation_frames=str(folders / "images"), moderation_frames_count=4
    )  # 0, 3, 6 and 9
    drawn: list[int] = []

    def frames() -> Iterator[bytes]:
        for index in range(10):
            drawn.append(index)
            yield WHITE if index == bad else BLACK

    with pytest.raises(ContentBlockedError) as error:
        list(watching.moderated(Clip(106, 60, frames()), 10).frames)
    assert (error.value.stage, error.value.category) == ("frames", "nsfw")
    assert drawn == list(range(bad + 1))


def test_a_clip_of_good_frames_comes_out_as_it_was(folders: Path) -> None:
    watching = moderation(moderation_frames=str(folders / "images"))
    frames = [BLACK] * 10
    clip = watching.moderated(Clip(106, 60, iter(frames), ("a warning",)), 10)
    assert (clip.width, clip.height, clip.warnings) == (106, 60, ("a warning",))
    assert list(clip.frames) == frames


def test_only_the_sampled_frames_are_judged(folders: Path) -> None:
    watching = moderation(moderation_frames=str(folders / "images"), moderation_frames_count=2)
    frames = [BLACK, WHITE, BLACK]
    assert list(watching.moderated(Clip(106, 60, iter(frames)), 3).frames) == frames


def test_the_frames_of_an_engine_are_read_as_it_gives_them(folders: Path) -> None:
    judge = frame_judge(folders / "images")
    clip = FakeEngine(0).generate(GenerateParams(prompt="a pond", frames=2), lambda *_: None)
    for frame in clip.frames:
        bright = sum(frame) / len(frame) > 127
        assert (judge.blocks(frame, clip.width, clip.height) is not None) == bright


@pytest.mark.parametrize("black", [-40.0, 40.0])
def test_the_frames_of_a_model_are_judged_on_their_way_to_the_encoder(
    tmp_path: Path, black: float
) -> None:
    """By a classifier to which any frame is good, or any is bad."""
    watching = moderation(
        moderation_frames=str(write_image_classifier(tmp_path / "images", black=black))
    )
    engine = build_engine(EngineSettings(mock=True), tmp_path)
    params = GenerateParams(prompt="a pond", frames=7, steps=10)
    clip = watching.moderated(engine.generate(params, lambda *_: None), params.frames)
    video = tmp_path / "video.mp4"
    with pytest.raises(ContentBlockedError) if black > 0 else nullcontext():
        encode(clip, params.fps, video)
    assert video.exists() == (black < 0)
