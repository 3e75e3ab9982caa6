"""Another fps of an MP4 that is encoded already."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from models.engine import Clip
from models.errors import DiskError, EncodingError
from models.request.params import HEIGHT, WIDTH
from models.video.encoding import encode, retime

SMALL = (106, 60)
RATES = [7, 7.123457, 7.5, 12.8, 16, 23.976, 25.5, 29.97, 30]
DESCRIPTION = "Made by AI; é = \\ #1"
LEVELS = {22: 20_250, 30: 40_500, 31: 108_000}
"""Macroblocks a second of each level: H.264, table A-1."""


@cache
def frames_of(count: int) -> Sequence[bytes]:
    """Moving stripes with grain, so that the encoder has frames of all types."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : SMALL[1], 0 : SMALL[0]]
    return [
        (128 + 60 * np.sin((rows + columns + 3 * index) / 9) + random.normal(0, 8, rows.shape))
        .clip(0, 255)
        .astype(np.uint8)
        .repeat(3)
        .tobytes()
        for index in range(count)
    ]


def comment_of(fps: float) -> str:
    """As mocks write it: with the fps."""
    return f'{{"mock": "light mock", "fps": {fps}, "prompt": "=;#\\"}}'


def encoded(path: Path, count: int, fps: float) -> Path:
    frames = iter(frames_of(count))
    encode(Clip(*SMALL, frames, (), comment_of(fps), DESCRIPTION), fps, path)
    return path


def retimed(source: Path, fps: float, target: Path) -> bytes:
    retime(source, fps, target, comment_of(fps), DESCRIPTION)
    return target.read_bytes()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("source") / "source.mp4", 7, 16)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_retimed_video_is_the_one_that_would_have_been_encoded(
    tmp_path: Path, count: int
) -> None:
    videos = {fps: encoded(tmp_path / f"{fps}.mp4", count, fps) for fps in RATES}
    for source in videos.values():
        for fps, wanted in videos.items():
            assert retimed(source, fps, tmp_path / "video.mp4") == wanted.read_bytes()


@pytest.mark.parametrize("count", [52, 160])
def test_so_is_one_with_many_frames(tmp_path: Path, count: int) -> None:
    videos = {fps: encoded(tmp_path / f"{fps}.mp4", count, fps) for fps in (7, 23.976, 30)}
    for source in videos.values():
        for fps, wanted in videos.items():
            assert retimed(source, fps, tmp_path / "video.mp4") == wanted.read_bytes()


def test_a_video_is_retimed_again_and_again_without_loss(tmp_path: Path, source: Path) -> None:
    last = tmp_path / "first.mp4"
    shutil.copy(source, last)
    for fps in (29.97, 7.123457, 16):
        retimed(last, fps, last := tmp_path / f"{fps}.mp4")
    assert last.read_bytes() == source.read_bytes()


def test_pictures_are_encoded_alike_at_every_fps(tmp_path: Path) -> None:
    pictures = set()
    for fps in RATES:
        with av.open(encoded(tmp_path / "video.mp4", 7, fps)) as file:
            pictures.add(tuple(bytes(packet) for packet in file.demux(video=0)))
    assert len(pictures) == 1


@pytest.mark.parametrize("fps", RATES)
def test_the_h264_states_the_rate_and_a_level_that_allows_it(tmp_path: Path, fps: float) -> None:
    rate = Fraction(str(fps)).limit_denominator(30_000)
    with av.open(encoded(tmp_path / "video.mp4", 2, fps)) as file:
        codec = file.streams.video[0].codec_context
        assert codec.framerate == rate
        assert codec.extradata
        level = codec.extradata[3]  # of the avcC: ISO 14496-15, 5.3.3.1.2
    macroblocks = -(-WIDTH // 16) * -(-HEIGHT // 16)
    assert level == min(each for each, most in LEVELS.items() if macroblocks * rate <= most)


def test_the_metadata_is_the_new_one_alone(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "video.mp4"
    retime(source, 30, path)
    encode(Clip(*SMALL, iter(frames_of(7))), 30, tmp_path / "bare.mp4")
    assert path.read_bytes() == (tmp_path / "bare.mp4").read_bytes()


def test_the_file_is_private_whatever_its_name_and_the_source_stays(
    tmp_path: Path, source: Path
) -> None:
    before, path = source.read_bytes(), tmp_path / "-y %03d;'é.mp4"
    retime(source, 30, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert source.read_bytes() == before


def size_of_last_frame(path: Path) -> int:
    with av.open(path) as file:
        return [packet.size for packet in file.demux(video=0) if packet.size][-1]


def test_a_damaged_source_is_an_error_and_leaves_no_file(tmp_path: Path, source: Path) -> None:
    whole = source.read_bytes()
    with av.open(source) as file:
        third = [packet.pos or 0 for packet in file.demux(video=0)][2]
    damaged = {
        "empty": b"",
        "without pictures": whole[:1000],
        "half": whole[: len(whole) // 2],
        "without its last frame": whole[: -size_of_last_frame(source)],
        "without its last byte": whole[:-1],
        "no MP4": b"\x1a\x45\xdf\xa3" + bytes(500),
        "with a broken frame": whole[:third] + bytes([255] * 4) + whole[third + 4 :],
        "other boxes": whole.replace(b"moov", b"free", 1),
        "frames of another size": whole.replace(b"stsz" + bytes(8), b"stsz" + bytes(7) + b"\x09"),
    }
    (tmp_path / "out").mkdir()
    for what, data in damaged.items():
        (tmp_path / "source.mp4").write_bytes(data)
        with pytest.raises(EncodingError, match=r"^The video could not be (read|encoded): "):
            retime(tmp_path / "source.mp4", 30, tmp_path / "out" / "video.mp4")
        assert not list((tmp_path / "out").iterdir()), what


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"^The video could not be read: No such file"):
        retime(tmp_path / "source.mp4", 30, tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_from_other_errors(
    tmp_path: Path, source: Path, ffmpeg_script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    real = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg_script))
    # Files of at most 32 blocks: a write beyond that fails as on a full disk.
    ffmpeg_script.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 32\nexec '{real}' \"$@\"\n")
    with pytest.raises(DiskError, match="File too large"):
        retime(source, 30, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == [ffmpeg_script]


def test_a_dying_ffmpeg_is_an_error_with_its_first_line(
    tmp_path: Path, source: Path, ffmpeg_script: Path
) -> None:
    ffmpeg_script.write_text(
        "#!/bin/sh\nhead -c 1000 > video.mp4\necho '[mp4 @ 0x55ac] The cause' >&2\nexit 3\n"
    )
    with pytest.raises(EncodingError, match=r"^The video could not be encoded: The cause$"):
        retime(source, 30, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == [ffmpeg_script]
