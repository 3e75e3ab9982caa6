"""Encodes frames to an MP4, a WebM or a GIF through ffmpeg, and changes the fps of an MP4."""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

from models.engine import Clip
from models.errors import DiskError, EncodingError, EngineUnavailableError, not_installed
from models.request.params import HEIGHT, WIDTH, Format

MAX_DENOMINATOR = 30_000
"""Of a frame rate. ffmpeg limits both numbers of the fraction to 1,001,000; ours go up to 30."""

NOMINAL = Fraction(16)
"""Frames per second that x264 is told for every MP4: it spends more on a frame that is shown for
longer, and other rates would give other pictures. 16 is the default of `fps`."""

LEVELS = {22: 20_250, 30: 40_500, 31: 108_000}
"""Macroblocks a second that a decoder of each H.264 level manages (H.264, table A-1): as x264 would
choose for frames of this size, by the fps that the file states."""

MACROBLOCKS = math.ceil(WIDTH / 16) * math.ceil(HEIGHT / 16)
"""Of one frame."""

HEAD = 4096
"""Bytes of an MP4 that have the description of its pictures. The texts of its metadata follow."""

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
    index precedes the pictures, so a browser can play the file while it loads. In MP4, the encoded
    pictures are the same for every `fps`; see `retime`.

    Args:
        clip: to encode; its frames are drawn one at a time.
        fps: frames per second, above 0 and up to 60; fractions are exact in MP4 (23.976 becomes
            2997/125). WebM rounds the time of each frame to a millisecond, GIF to a hundredth of a
            second.
        path: the file to write, in an existing folder. An error leaves no file.
        kind: H.264 in MP4, VP9 in WebM, or an animated GIF that repeats.

    Raises:
        DiskError: the disk did not accept the video.
        EncodingError: ffmpeg failed otherwise, or a frame has the wrong size.
        BaseException: what `clip.frames` raised.
    """
    try:
        with _scratch() as log, _scratch() as metadata:
            _write_metadata(metadata, clip.comment, clip.description)
            command = _encode_command(clip, fps, path, metadata, kind)
            with _ffmpeg(command, path.parent, log, metadata) as process:
                _run(process, clip, log)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def retime(
    source: Path, fps: float, target: Path, comment: str = "", description: str = ""
) -> None:
    """Write an MP4 of `encode` again with another fps, without decoding it.

    The bytes are those of `encode` with the same frames at that fps. What was added to the source
    after encoding stays behind: a C2PA manifest, which would not fit the new file, and XMP.

    Args:
        source: an MP4 of `encode`, of at most 300 frames at up to 30 fps, marked or not; it is only
            read.
        fps: frames per second, as for `encode`.
        target: another file to write, in an existing folder, readable by its owner only. An error
            leaves no file.
        comment: of the new file, as of a `Clip`; the source's may name its fps.
        description: likewise.

    Raises:
        DiskError: the disk did not accept the video.
        EncodingError: the source cannot be read or is damaged, or ffmpeg failed otherwise.
    """
    try:
        with _scratch() as log, _scratch() as metadata, _opened(source) as video:
            _write_metadata(metadata, comment, description)
            command = _retime_command(fps, target, metadata)
            with _ffmpeg(command, target.parent, log, metadata, video) as process:
                _check(process.wait(), log)
            _state_bit_rate(target)
    except BaseException:
        target.unlink(missing_ok=True)
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


def encoder_version() -> str:
    """The version that ffmpeg prints; empty if it does not run, which fails each encoding.

    Raises:
        EngineUnavailableError: as `encoder`.
    """
    encoder()
    from imageio_ffmpeg import get_ffmpeg_version  # noqa: PLC0415 (an extra)

    try:
        return str(get_ffmpeg_version())
    except (OSError, subprocess.CalledProcessError):
        return ""


def _encode_command(
    clip: Clip, fps: float, path: Path, metadata: IO[bytes], kind: Format
) -> list[str]:
    rate = _rate(fps)
    codec = {"mp4": _mp4, "webm": _webm, "gif": _gif}[kind]
    frames = [
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{clip.width}x{clip.height}"),
        *("-framerate", str(NOMINAL if kind == "mp4" else rate)),
    ]
    options = [
        *("-fps_mode", "passthrough", "-flags:v", "+bitexact", "-threads", str(THREADS)),
        *codec(rate),
    ]
    return _command(frames, metadata, options, path)


def _retime_command(fps: float, path: Path, metadata: IO[bytes]) -> list[str]:
    # Without -xerror, what can be read of a damaged file would pass for all of it.
    return _command(["-xerror", "-f", "mp4"], metadata, ["-c", "copy", *_timed(_rate(fps))], path)


def _command(source: list[str], metadata: IO[bytes], options: list[str], path: Path) -> list[str]:
    """The command line, with the options of its input, which is a pipe, and its output."""
    return [
        encoder(),
        *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y"),
        *(*source, "-i", "pipe:0"),
        *("-f", "ffmetadata", "-i", f"pipe:{metadata.fileno()}", "-map_metadata", "1"),
        *options,
        *("-fflags", "+bitexact", f"file:{path.name}"),
    ]


def _rate(fps: float) -> Fraction:
    return Fraction(str(fps)).limit_denominator(MAX_DENOMINATOR)


def _mp4(rate: Fraction) -> list[str]:
    return [
        *("-vf", YUV, "-c:v", "libx264", "-preset", "veryfast", "-crf", "18"),
        *_timed(rate),
    ]


def _timed(rate: Fraction) -> list[str]:
    """Put H.264 into an MP4 that states a rate, whatever rate its packets came with."""
    # Ticks that hit the end of every frame; the usual milliseconds would round the duration.
    clock = rate.numerator * math.ceil(1000 / rate.numerator)
    # Of the pictures' own clock. At least 10,000 a second, as ffmpeg takes.
    ticks = rate.numerator * 2 ** max(0, math.ceil(math.log2(10_000 / rate.numerator)))
    frame = int(ticks / rate)
    level = next(level for level, most in LEVELS.items() if MACROBLOCKS * rate <= most)
    return [
        "-bsf:v",
        # All frames are shown for equally long: a time in frames is the same at any rate. It comes
        # in our ticks, 333 or more a frame up to 30 fps, so `round` is right for as many frames.
        f"setts=prescale=1:time_base=1/{ticks}:duration={frame}"
        f":pts=round(PTS/DURATION)*{frame}:dts=round(DTS/DURATION)*{frame},"
        # H.264 counts two ticks a frame.
        f"h264_metadata=tick_rate={2 * rate}:level={level}",
        *("-f", "mp4", "-movflags", "+faststart"),
        *("-movie_timescale", str(clock), "-video_track_timescale", str(ticks)),
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


def _write_metadata(metadata: IO[bytes], comment: str, description: str) -> None:
    """In ffmpeg's form. As arguments these would show in the list of processes."""
    metadata.write(b";FFMETADATA1\n")
    for name, text in (("comment", comment), ("description", description)):
        escaped = re.sub(r"([=;#\\])", r"\\\1", text)
        metadata.write(f"{name}={escaped}\n".encode())
    metadata.seek(0)


def _scratch() -> IO[bytes]:
    """A file, as a pipe that fills up while the frames are written would stop ffmpeg."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise DiskError(f"There is no room for temporary files: {error.strerror}.") from error


def _opened(source: Path) -> IO[bytes]:
    """A whole MP4. ffmpeg would take one that ends early for one with fewer frames."""
    try:
        video = source.open("rb", buffering=0)  # ffmpeg reads on where this process has stopped
        if _ends_with_a_box(video):
            return video
        video.close()
    except OSError as error:
        raise EncodingError(f"The video could not be read: {error.strerror}.") from error
    raise EncodingError("The video could not be read: the file is damaged.")


def _ends_with_a_box(video: IO[bytes]) -> bool:
    """Whether an MP4 has pictures and ends where its last box does: ISO 14496-12, 4.2."""
    size, start, kinds = video.seek(0, os.SEEK_END), 0, set()
    while start < size:
        video.seek(start)
        head = video.read(8)
        kinds.add(head[4:])
        start += max(len(head), int.from_bytes(head[:4]))
    video.seek(0)
    return start == size and b"mdat" in kinds


@contextmanager
def _ffmpeg(
    command: list[str],
    folder: Path,
    log: IO[bytes],
    metadata: IO[bytes],
    source: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ffmpeg, which does not outlive the block. Its input is `source`, or else a pipe."""
    try:
        process = subprocess.Popen(
            command,
            # With a bare file name, ffmpeg's messages do not show the folder to a client.
            cwd=folder,
            stdin=source or subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(metadata.fileno(),),
            umask=0o077,
            # Ctrl-C in the terminal is for the worker alone, which may finish this video.
            process_group=0,
        )
    except OSError as error:
        raise EncodingError(f"ffmpeg could not be started: {error.strerror}.") from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            _close(process.stdin)


def _run(process: subprocess.Popen[bytes], clip: Clip, log: IO[bytes]) -> None:
    """Feed the frames to ffmpeg, and wait for its end."""
    complete = _feed(cast("IO[bytes]", process.stdin), clip)
    _check(process.wait(), log, complete=complete)


def _state_bit_rate(path: Path) -> None:
    """As ffmpeg states it of what it encodes: once. Of a copy it adds what the source states.

    In the box `btrt` (ISO 14496-12, 8.5.2), of a buffer's size, the highest rate and the average.
    """
    try:
        with path.open("r+b") as file:
            box = file.read(HEAD).find(b"btrt")
            if box < 0:
                raise EncodingError("The video could not be encoded: it has no pictures.")
            file.seek(box + 12)
            average = file.read(4)
            file.seek(box + 8)
            file.write(average + bytes(4))
    except OSError as error:
        raise DiskError(f"The video could not be written: {error.strerror}.") from error


def _check(status: int, log: IO[bytes], *, complete: bool = True) -> None:
    """Raise unless ffmpeg has read all of its input and succeeded."""
    if status or not complete:
        kind = DiskError if status in DISK_STATUSES else EncodingError
        raise kind(f"The video could not be encoded: {_first_line(log)}")


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
