"""Encodes frames to an MP4, a WebM or a GIF through ffmpeg."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from errno import EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

from models.engine import Clip
from models.errors import DiskError, EncodingError, EngineUnavailableError, not_installed
from models.params import HEIGHT, WIDTH, Format

MAX_DENOMINATOR = 30_000
"""Of a frame rate. ffmpeg limits both numbers of the fraction to 1,001,000; ours go up to 30."""

THREADS = 2
"""Fixed, as x264 splits its work by thread: another number gives other bytes."""

DISK_STATUSES = frozenset(256 - number for number in (ENOSPC, EDQUOT, EFBIG, EROFS, EIO))
"""Exit statuses of ffmpeg (the negative error number) when the disk did not accept a file."""

# full_chroma_int, accurate_rnd and bitexact: the same bytes whatever instructions the CPU has.
SCALE = f"scale={WIDTH}:{HEIGHT}:flags=bicubic+accurate_rnd+bitexact+full_chroma_int"
YUV = (
    f"{SCALE}:out_color_matrix=bt709:out_range=tv,"
    "format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)
# One palette, so that what stands still from frame to frame is left out. ffmpeg holds all frames
# until it is known.
PALETTE = (
    f"{SCALE},split[seen][drawn];[seen]palettegen=stats_mode=full[palette];"
    "[drawn][palette]paletteuse=dither=bayer:bayer_scale=4:diff_mode=rectangle"
)


def encode(clip: Clip, fps: float, path: Path, kind: Format = "mp4") -> None:
    """Write a clip as a video of 848x480, readable by its owner only.

    Frames of another size are scaled. The same frames give the same bytes. In MP4 and WebM, the
    index precedes the pictures, so a browser can play the file while it loads.

    Args:
        clip: to encode; its frames are drawn one at a time.
        fps: frames per second, above 0; fractions are exact in MP4 (23.976 becomes 2997/125). WebM
            rounds the time of each frame to a millisecond, GIF to a hundredth of a second.
        path: the file to write, in an existing folder. An error leaves no file.
        kind: H.264 in MP4, VP9 in WebM, or an animated GIF that repeats.

    Raises:
        DiskError: the disk did not accept the video.
        EncodingError: ffmpeg failed otherwise, or a frame has the wrong size.
        BaseException: what `clip.frames` raised.
    """
    try:
        with _scratch() as log, _scratch() as metadata:
            _write_metadata(metadata, clip)
            command = _command(clip, fps, path, metadata, kind)
            _run(command, clip, path.parent, log, metadata)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def encoder() -> str:
    """The path of ffmpeg.

    Raises:
        EngineUnavailableError: it is not installed; the text has the remedy.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise not_installed(error, "'.[mock]', or '.[worker]' for real weights") from error
    try:
        return str(get_ffmpeg_exe())
    except RuntimeError as error:
        raise EngineUnavailableError(f"There is no ffmpeg: {error}") from error


def _command(clip: Clip, fps: float, path: Path, metadata: IO[bytes], kind: Format) -> list[str]:
    rate = Fraction(str(fps)).limit_denominator(MAX_DENOMINATOR)
    codec = {"mp4": _mp4, "webm": _webm, "gif": _gif}[kind]
    return [
        encoder(),
        *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{clip.width}x{clip.height}"),
        *("-framerate", str(rate), "-i", "pipe:0"),
        *("-f", "ffmetadata", "-i", f"pipe:{metadata.fileno()}", "-map_metadata", "1"),
        *("-fps_mode", "passthrough", "-flags:v", "+bitexact", "-threads", str(THREADS)),
        *codec(rate),
        *("-fflags", "+bitexact", f"file:{path.name}"),
    ]


def _mp4(rate: Fraction) -> list[str]:
    # Ticks that hit the end of every frame; the usual milliseconds would round the duration.
    clock = rate.numerator * math.ceil(1000 / rate.numerator)
    return [
        *("-vf", YUV, "-c:v", "libx264", "-preset", "veryfast", "-crf", "18"),
        *("-f", "mp4", "-movflags", "+faststart", "-movie_timescale", str(clock)),
    ]


def _webm(_rate: Fraction) -> list[str]:
    return [
        *("-vf", YUV, "-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0"),
        # Without a look ahead, which takes three to six times as long, for files that are 5 to 47 %
        # smaller, by their grain: see docs/operate/performance.md.
        *("-deadline", "realtime", "-cpu-used", "5", "-tile-columns", "1", "-row-mt", "0"),
        *("-f", "webm", "-cues_to_front", "1"),
    ]


def _gif(_rate: Fraction) -> list[str]:
    return ["-vf", PALETTE, "-c:v", "gif", "-f", "gif", "-loop", "0"]


def _write_metadata(metadata: IO[bytes], clip: Clip) -> None:
    """In ffmpeg's form. As arguments these would show in the list of processes."""
    metadata.write(b";FFMETADATA1\n")
    for name, text in (("comment", clip.comment), ("description", clip.description)):
        escaped = re.sub(r"([=;#\\])", r"\\\1", text)
        metadata.write(f"{name}={escaped}\n".encode())
    metadata.seek(0)


def _scratch() -> IO[bytes]:
    """A file, as a pipe that fills up while the frames are written would stop ffmpeg."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise DiskError(f"There is no room for temporary files: {error.strerror}.") from error


def _run(command: list[str], clip: Clip, folder: Path, log: IO[bytes], metadata: IO[bytes]) -> None:
    """Feed the frames to ffmpeg, and wait for its end. It does not outlive this call."""
    process = _start(command, folder, log, metadata)
    pipe = cast("IO[bytes]", process.stdin)
    try:
        complete = _feed(pipe, clip)
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        _close(pipe)
    if status or not complete:
        kind = DiskError if status in DISK_STATUSES else EncodingError
        raise kind(f"The video could not be encoded: {_first_line(log)}")


def _start(
    command: list[str], folder: Path, log: IO[bytes], metadata: IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            # With a bare file name, ffmpeg's messages do not show the folder to a client.
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(metadata.fileno(),),
            umask=0o077,
            # Ctrl-C in the terminal is for the worker alone, which may finish this video.
            process_group=0,
        )
    except OSError as error:
        raise EncodingError(f"ffmpeg could not be started: {error.strerror}.") from error


def _feed(pipe: IO[bytes], clip: Clip) -> bool:
    """Write all frames; return False when ffmpeg stopped reading before the end."""
    for frame in _checked(clip):
        try:
            pipe.write(frame)
        except BrokenPipeError:
            return False
    return _close(pipe)


def _checked(clip: Clip) -> Iterator[bytes]:
    """The frames of a clip, after a check of their size and that there is one."""
    size = clip.width * clip.height * 3
    number = 0
    for number, frame in enumerate(clip.frames, start=1):
        if len(frame) != size:
            # ffmpeg would accept the bytes, and show sheared pictures.
            raise EncodingError(f"Frame {number} has {len(frame):,} bytes instead of {size:,}.")
        yield frame
    if number == 0:
        raise EncodingError("There are no frames to encode.")


def _close(pipe: IO[bytes]) -> bool:
    """Flush and close ffmpeg's input; return False when ffmpeg had stopped reading."""
    try:
        pipe.close()
    except BrokenPipeError:
        return False
    return True


def _first_line(log: IO[bytes]) -> str:
    """The first message of ffmpeg, which has the cause."""
    log.seek(0)
    line = log.readline().decode(errors="replace").strip()
    # Without the address in "[out#0/mp4 @ 0x55ac3b83e040] Could not ...".
    return re.sub(r"^\[[^]]*\] ", "", line) or "ffmpeg stopped without saying why."
