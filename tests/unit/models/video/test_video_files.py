"""Files other than the MP4: WebM, GIF, and stills."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from models.engine import Clip
from models.mock.fake_engine import FakeEngine
from models.request.params import HEIGHT, WIDTH, FileParams, Format, GenerateParams
from models.video.encoding import encode
from models.video.stills import Stills

SMALL = (106, 60)
NONE = FileParams()
BOTH = FileParams(poster=True, last_frame=True)


def frames_of(count: int) -> list[bytes]:
    """Frames of one grey each, from black to white."""
    size = SMALL[0] * SMALL[1] * 3
    return [bytes([255 * index // count]) * size for index in range(count)]


def clip_of(count: int) -> Clip:
    return Clip(*SMALL, iter(frames_of(count)))


def drawn(**asked: object) -> Clip:
    """Of the light mock: gradients and words, in full size."""
    params = GenerateParams.model_validate({"prompt": "a pond", "steps": 10, **asked})
    return FakeEngine(0).generate(params, lambda *_: None)


def times(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds."""
    with av.open(path) as file:
        stream = file.streams.video[0]
        assert stream.time_base is not None
        return [(frame.pts or 0) * stream.time_base for frame in file.decode(stream)]


CODECS: dict[Format, str] = {"webm": "vp9", "gif": "gif"}
TICKS: dict[Format, Fraction] = {"webm": Fraction(1, 1000), "gif": Fraction(1, 100)}


@pytest.mark.parametrize("format_", CODECS)
@pytest.mark.parametrize("fps", [7, 16, 23.976, 30])
@pytest.mark.parametrize("frames", [1, 2, 52])
def test_every_frame_is_shown_at_its_time_as_far_as_the_format_can(
    tmp_path: Path, format_: Format, fps: float, frames: int
) -> None:
    path = tmp_path / f"video.{format_}"
    encode(clip_of(frames), fps, path, format_)
    with av.open(path) as file:
        found = file.streams.video[0].codec_context
        assert found.name.removeprefix("lib") == CODECS[format_]
        assert (found.width, found.height) == (WIDTH, HEIGHT)
    wanted = [index / Fraction(str(fps)) for index in range(frames)]
    assert len(times(path)) == frames
    for shown, right in zip(times(path), wanted, strict=True):
        assert abs(shown - right) <= TICKS[format_] / 2


@pytest.mark.parametrize("format_", ["webm", "gif"])
def test_colours_survive(tmp_path: Path, format_: Format) -> None:
    path = tmp_path / f"video.{format_}"
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]
    frames = (bytes(colour) * (SMALL[0] * SMALL[1]) for colour in colours)
    encode(Clip(*SMALL, frames), 16, path, format_)
    with av.open(path) as file:
        for colour, frame in zip(colours, file.decode(video=0), strict=True):
            seen = frame.to_ndarray(format="rgb24").mean(axis=(0, 1))
            assert seen == pytest.approx(colour, abs=4)


@pytest.mark.parametrize("format_", ["webm", "gif"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, format_: Format) -> None:
    for name in "ab":
        encode(drawn(frames=20), 23.976, tmp_path / name, format_)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_webm_plays_while_it_loads_and_has_the_comment(tmp_path: Path) -> None:
    """Its index stands before the first pictures."""
    path = tmp_path / "video.webm"
    clip = drawn(frames=52)
    encode(clip, 16, path, "webm")
    data = path.read_bytes()
    cues, cluster = bytes.fromhex("1c53bb6b"), bytes.fromhex("1f43b675")
    assert 0 < data.rindex(cues, 0, data.index(cluster)) < data.index(cluster)
    with av.open(path) as file:
        assert file.metadata["COMMENT"] == clip.comment


def test_a_gif_repeats_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "video.gif"
    encode(clip_of(3), 16, path, "gif")
    with Image.open(path) as picture:
        assert (picture.info["loop"], picture.n_frames) == (0, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("format_", ["webm", "gif"])
def test_an_error_leaves_no_file_and_a_file_is_private(tmp_path: Path, format_: Format) -> None:
    path = tmp_path / f"video.{format_}"

    def broken() -> Iterator[bytes]:
        yield from frames_of(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(Clip(*SMALL, broken()), 16, path, format_)
    assert not list(tmp_path.iterdir())
    encode(clip_of(1), 16, path, format_)
    assert path.stat().st_mode & 0o777 == 0o600


# Stills


def shade(jpeg: bytes) -> int:
    """The grey of a picture."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (WIDTH, HEIGHT), "RGB")
        least, most = picture.convert("L").getextrema()
        assert least == most
        return int(least)  # type: ignore[arg-type]


def test_nothing_is_taken_that_was_not_asked_for() -> None:
    clip, stills = clip_of(3), Stills.of(NONE, 3)
    assert stills.watching(clip) is clip
    assert stills.taken == {}


@pytest.mark.parametrize(("count", "middle"), [(1, 0), (2, 1), (7, 3), (52, 26)])
def test_a_poster_is_the_middle_and_the_last_frame_the_last(count: int, middle: int) -> None:
    stills = Stills.of(BOTH, count)
    passed = list(stills.watching(clip_of(count)).frames)
    assert passed == frames_of(count)
    assert {still: shade(jpeg) for still, jpeg in stills.taken.items()} == {
        "poster": passed[middle][0],
        "last_frame": passed[-1][0],
    }


def test_a_still_is_taken_when_its_frame_passes() -> None:
    """So that no list of frames is held, and what moderation stops is never a picture."""
    stills = Stills.of(BOTH, 7)
    frames = stills.watching(clip_of(7)).frames
    taken = [[*stills.taken] for _ in itertools.islice(frames, 4)]
    assert taken == [[], [], [], ["poster"]]


def test_the_same_frame_gives_the_same_picture_close_to_it() -> None:
    pictures = []
    for _ in range(2):
        stills = Stills.of(FileParams(last_frame=True), 5)
        *_, last = stills.watching(drawn(frames=5)).frames
        pictures.append(stills.taken["last_frame"])
    assert pictures[0] == pictures[1]
    with Image.open(io.BytesIO(pictures[0])) as picture:
        differences = [abs(one - other) for one, other in zip(picture.tobytes(), last, strict=True)]
    assert sum(differences) / len(differences) < 2
