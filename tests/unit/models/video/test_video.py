from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import psutil
import pytest

from models.engine import Clip
from models.errors import DiskError, EncodingError
from models.request.params import HEIGHT, WIDTH
from models.video.encoding import encode

SMALL = (106, 60)
BT709 = 1
LIMITED_RANGE = 1


def clip_of(count: int) -> Clip:
    """Frames of one grey each, from black to white."""
    return Clip(*SMALL, (grey(255 * index // count) for index in range(count)))


def noise_of(count: int) -> Clip:
    """Frames that take much room."""
    return Clip(*SMALL, (os.urandom(len(grey(0))) for _ in range(count)))


def grey(level: int) -> bytes:
    return bytes([level]) * (SMALL[0] * SMALL[1] * 3)


def boxes(path: Path) -> list[str]:
    """The kinds of the boxes at the top of an MP4, in order."""
    data, kinds, start = path.read_bytes(), [], 0
    while start < len(data):
        kinds.append(data[start + 4 : start + 8].decode())
        start += int.from_bytes(data[start : start + 4])
    return kinds


@pytest.mark.parametrize("frames", [1, 2, 7, 52, 160])
@pytest.mark.parametrize(
    ("fps", "rate"),
    [(7, Fraction(7)), (23.976, Fraction(2997, 125)), (30, Fraction(30)), (16.0, Fraction(16))],
)
def test_the_video_is_what_was_asked_for(
    tmp_path: Path, frames: int, fps: float, rate: Fraction
) -> None:
    path = tmp_path / "video.mp4"
    encode(clip_of(frames), fps, path)
    with av.open(path) as file:
        stream = file.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.width, codec.height) == (WIDTH, HEIGHT)
        assert stream.average_rate == rate
        assert stream.frames == frames
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == frames / rate
        shown = [(frame.pts or 0) * stream.time_base for frame in file.decode(stream)]
        assert shown == [index / rate for index in range(frames)]


@pytest.mark.parametrize("fps", [29.97, 24000 / 1001, 7.123457, 11.111111111111, 29.999999999999])
def test_any_fps_is_met_within_a_millionth(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "video.mp4"
    encode(clip_of(13), fps, path)
    with av.open(path) as file:
        rate = file.streams.video[0].average_rate
    assert rate is not None
    assert float(rate) == pytest.approx(fps, rel=1e-6)


def test_colours_survive_and_are_tagged(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]
    frames = (bytes(colour) * (SMALL[0] * SMALL[1]) for colour in colours)
    encode(Clip(*SMALL, frames), 16, path)
    with av.open(path) as file:
        codec = file.streams.video[0].codec_context
        for colour, frame in zip(colours, file.decode(video=0), strict=True):
            seen = frame.to_ndarray(format="rgb24").mean(axis=(0, 1))
            assert seen == pytest.approx(colour, abs=4)
        assert (codec.color_primaries, codec.color_trc, codec.colorspace) == (BT709,) * 3
        assert codec.color_range == LIMITED_RANGE


def test_frames_of_full_size_are_not_scaled(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    stripes = b"\xff\xff\xff\x00\x00\x00" * (WIDTH // 2) * HEIGHT
    encode(Clip(WIDTH, HEIGHT, iter([stripes])), 16, path)
    with av.open(path) as file:
        [frame] = file.decode(video=0)
    row = frame.to_ndarray(format="gray")[HEIGHT // 2]
    assert row[::2].min() > 200
    assert row[1::2].max() < 50


def test_the_index_comes_before_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    encode(clip_of(7), 16, path)
    kinds = boxes(path)
    assert kinds.index("moov") < kinds.index("mdat")


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    frames = list(noise_of(20).frames)
    for name in ("a.mp4", "b.mp4"):
        encode(Clip(*SMALL, iter(frames)), 23.976, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    encode(clip_of(1), 16, path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_strange_file_name_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "-y %03d;'é.mp4"
    encode(clip_of(1), 16, path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [0, -1, 1])
def test_a_frame_of_the_wrong_size_is_an_error(tmp_path: Path, wrong: int) -> None:
    size = len(grey(0))
    frames = iter([grey(0), bytes(size + wrong) if wrong else b""])
    with pytest.raises(EncodingError, match=r"Frame 2 has [\d,]+ bytes instead of 19,080"):
        encode(Clip(*SMALL, frames), 16, tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


def test_a_clip_without_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="no frames"):
        encode(Clip(*SMALL, iter([])), 16, tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


class Abandoned(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 5, 60])
def test_an_exception_from_the_frames_leaves_no_file_and_no_process(
    tmp_path: Path, after: int
) -> None:
    reason = Abandoned()

    def frames() -> Iterator[bytes]:
        yield from clip_of(after).frames
        raise reason

    with pytest.raises(Abandoned) as raised:
        encode(Clip(*SMALL, frames()), 16, tmp_path / "video.mp4")
    assert raised.value is reason
    assert not list(tmp_path.iterdir())
    assert not _encoders()


def test_a_broken_pipe_of_the_frames_own_is_not_taken_for_ffmpegs(tmp_path: Path) -> None:
    def frames() -> Iterator[bytes]:
        yield grey(0)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        encode(Clip(*SMALL, frames()), 16, tmp_path / "video.mp4")


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"^The video could not be encoded: .*No space left"):
        encode(noise_of(160), 16, path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_midway_is_told_from_other_errors(
    tmp_path: Path, ffmpeg_script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    real = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg_script))
    # Files of at most 32 blocks: a write beyond that fails as on a full disk.
    ffmpeg_script.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 32\nexec '{real}' \"$@\"\n")
    with pytest.raises(DiskError, match="File too large"):
        encode(noise_of(160), 16, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == [ffmpeg_script]


def test_a_dying_ffmpeg_is_an_error_with_its_first_line(
    tmp_path: Path, ffmpeg_script: Path
) -> None:
    ffmpeg_script.write_text(
        "#!/bin/sh\nhead -c 1000 > video.mp4\n"
        "echo '[mp4 @ 0x55ac] The cause' >&2\necho 'A consequence' >&2\nexit 3\n"
    )
    with pytest.raises(EncodingError) as error:
        encode(Clip(*SMALL, itertools.repeat(grey(0))), 16, tmp_path / "video.mp4")
    assert str(error.value) == "The video could not be encoded: The cause"
    assert error.value.code == "internal"
    assert list(tmp_path.iterdir()) == [ffmpeg_script]


def test_an_ffmpeg_that_stops_reading_early_is_an_error(
    tmp_path: Path, ffmpeg_script: Path
) -> None:
    ffmpeg_script.write_text("#!/bin/sh\ntouch video.mp4\n")
    with pytest.raises(EncodingError, match="without saying why"):
        encode(Clip(*SMALL, itertools.repeat(grey(0))), 16, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == [ffmpeg_script]


def test_a_talkative_ffmpeg_does_not_block(tmp_path: Path, ffmpeg_script: Path) -> None:
    ffmpeg_script.write_text(
        "#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' 'x' >&2\ncat > video.mp4\n"
    )
    encode(clip_of(52), 16, tmp_path / "video.mp4")


def test_an_ffmpeg_that_cannot_start_is_an_error(tmp_path: Path, ffmpeg_script: Path) -> None:
    ffmpeg_script.unlink()
    with pytest.raises(EncodingError, match=r"^ffmpeg could not be started: No such file"):
        encode(clip_of(1), 16, tmp_path / "video.mp4")


def _encoders() -> list[psutil.Process]:
    """Other tests of this process have children of their own."""
    return [child for child in psutil.Process().children() if "ffmpeg" in child.name()]
