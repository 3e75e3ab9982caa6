"""Videos that are marked as made by AI: what readers see, and what no mark changes."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import av
import pytest
from c2pa import Reader
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID
from structlog.testing import capture_logs

from models.engine import Clip
from models.video.encoding import encode, retime
from tests.unit.worker.support.certificates import issued
from worker.errors import ProvenanceUnusableError, StorageError
from worker.provenance.label import AI_MADE
from worker.provenance.marker import Marker, open_marker
from worker.settings import WorkerSettings

MODEL, PROMPT = "Mochi 1", "A red panda drinks tea"


def marker_of(data_dir: Path, **settings: Any) -> Marker:
    marker = open_marker(WorkerSettings(data_dir=data_dir, **settings))
    assert marker
    return marker


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    """A marker that signs, with a certificate that it has made."""
    return marker_of(tmp_path_factory.mktemp("data"))


def boxes(video: bytes) -> list[bytes]:
    """The kinds of the boxes at the top of an MP4, in order."""
    kinds, start = [], 0
    while start < len(video):
        kinds.append(video[start + 4 : start + 8])
        start += int.from_bytes(video[start : start + 4])
    return kinds


def pictures(video: bytes) -> list[bytes]:
    with av.open(io.BytesIO(video), "r") as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


@pytest.mark.parametrize("signs", [True, False])
def test_a_video_of_another_fps_has_no_mark_until_it_is_marked_itself(
    signing: Marker, video: Path, tmp_path: Path, *, signs: bool
) -> None:
    """A manifest of the old file would call the new one tampered with."""
    unmarked, retimed = tmp_path / "unmarked.mp4", tmp_path / "retimed.mp4"
    retime(video, 23.976, unmarked)
    marker = signing if signs else Marker()
    marker.mark(video, MODEL, PROMPT)
    retime(video, 23.976, retimed)
    assert boxes(retimed.read_bytes()) == [b"ftyp", b"moov", b"free", b"mdat"]
    assert retimed.read_bytes() == unmarked.read_bytes()
    signing.mark(retimed, MODEL, PROMPT)
    with Reader(retimed) as reader:
        assert reader.get_validation_state() == "Valid"


def test_a_signed_video_says_what_made_it(signing: Marker, video: Path) -> None:
    signing.mark(video, MODEL, PROMPT)
    with Reader(video) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = reader.get_active_manifest()
    assert manifest
    assert manifest["claim_generator_info"][0]["name"] == "mochi-server"
    (actions,) = (each for each in manifest["assertions"] if "actions" in each["label"])
    (action,) = actions["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == AI_MADE
    assert action["softwareAgent"]["name"] == "mochi-server"
    assert action["parameters"] == {"mochi-server": {"model": MODEL}}


def test_a_signed_video_shows_the_same_and_plays_while_it_loads(
    signing: Marker, video: Path, small_video: bytes
) -> None:
    signing.mark(video, MODEL, PROMPT)
    signed = video.read_bytes()
    kinds = boxes(signed)
    assert kinds[0] == b"ftyp"
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert pictures(signed) == pictures(small_video)
    assert len(signed) - len(small_video) < 20_000


def test_only_the_owner_may_read_a_marked_video(signing: Marker, video: Path) -> None:
    video.chmod(0o600)
    signing.mark(video, MODEL, PROMPT)
    assert video.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in video.parent.iterdir()] == ["video.mp4"]


def test_the_prompt_is_in_the_manifest_only_if_the_setting_says_so(
    tmp_path: Path, video: Path, small_video: bytes
) -> None:
    marker_of(tmp_path / "data").mark(video, MODEL, PROMPT)
    assert PROMPT.encode() not in video.read_bytes()
    video.write_bytes(small_video)
    marker_of(tmp_path / "data", c2pa_prompt=True).mark(video, MODEL, PROMPT)
    assert PROMPT.encode() in video.read_bytes()


def test_equal_videos_that_are_signed_are_equal(
    signing: Marker, video: Path, small_video: bytes
) -> None:
    marked = []
    for _ in range(2):
        video.write_bytes(small_video)
        signing.mark(video, MODEL, PROMPT)
        marked.append(video.read_bytes())
    assert marked[0] == marked[1]


def test_without_the_extra_the_term_is_in_the_metadata(
    tmp_path: Path, video: Path, small_video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.delitem(sys.modules, "worker.provenance.signing")
    marker = marker_of(tmp_path / "data")
    assert str(marker) == "metadata"
    marker.mark(video, MODEL, PROMPT)
    marked = video.read_bytes()
    assert marked.startswith(small_video)
    assert boxes(marked)[-1] == b"uuid"
    assert f'Iptc4xmpExt:DigitalSourceType="{AI_MADE}"'.encode() in marked
    assert pictures(marked) == pictures(small_video)
    assert not (tmp_path / "data").exists()


def test_equal_videos_labelled_without_a_signature_are_equal(
    tmp_path: Path, video: Path, small_video: bytes
) -> None:
    marker = marker_of(tmp_path, provenance="metadata")
    marked = []
    for _ in range(2):
        video.write_bytes(small_video)
        marker.mark(video, MODEL, PROMPT)
        marked.append(video.read_bytes())
    assert marked[0] == marked[1]


@pytest.mark.parametrize("settings", [{"provenance": "c2pa"}, {"c2pa_cert": "a", "c2pa_key": "b"}])
def test_who_insists_on_signatures_hears_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.delitem(sys.modules, "worker.provenance.signing")
    with pytest.raises(ProvenanceUnusableError, match=r"type: pip .* '\.\[provenance\]'"):
        marker_of(tmp_path, **settings)


def test_a_library_that_does_not_load_is_not_taken_for_one_that_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c2pa.py").write_text("raise RuntimeError('GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("c2pa", "worker.provenance.signing", "worker.provenance.verification"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ProvenanceUnusableError, match=r"GLIBC_2.99 .*MOCHI_PROVENANCE=metadata"):
        marker_of(tmp_path / "data")


def test_players_show_what_made_it(tmp_path: Path, signing: Marker) -> None:
    path = tmp_path / "video.mp4"
    clip = Clip(106, 60, iter([bytes(106 * 60 * 3)]), comment="a comment")
    encode(signing.described(clip, MODEL), 16, path)
    signing.mark(path, MODEL, PROMPT)
    with av.open(path) as file:
        assert file.metadata["description"] == f"Made by AI ({MODEL}). {AI_MADE}"
        assert file.metadata["comment"] == "a comment"


def test_where_marking_is_off_a_video_is_as_it_was_encoded(tmp_path: Path) -> None:
    assert open_marker(WorkerSettings(data_dir=tmp_path, provenance="off")) is None
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_signed_does_not_stay(signing: Marker, video: Path) -> None:
    video.write_bytes(b"no MP4")
    with pytest.raises(StorageError, match="cannot be signed, so it is not kept"):
        signing.mark(video, MODEL, PROMPT)
    assert not video.exists()


def test_a_disk_that_fills_up_leaves_no_half_signed_video(tmp_path: Path, signing: Marker) -> None:
    path = tmp_path / "video.mp4"
    path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="cannot be marked: No space left"):
        signing.mark(path, MODEL, PROMPT)
    assert not path.is_symlink()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_an_operators_certificate_signs(
    tmp_path: Path, video: Path, curve: ec.EllipticCurve
) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(curve))
    marker_of(tmp_path, c2pa_cert=str(cert), c2pa_key=str(key)).mark(video, MODEL, PROMPT)
    with Reader(video) as reader:
        manifest = reader.get_active_manifest()
    assert manifest
    assert manifest["signature_info"]["common_name"] == "Example Films"
    assert not (tmp_path / "provenance").exists()


@pytest.mark.parametrize(
    ("days", "usage"),
    [(-1, ExtendedKeyUsageOID.EMAIL_PROTECTION), (30, ExtendedKeyUsageOID.SERVER_AUTH)],
)
def test_an_operators_certificate_that_no_reader_would_accept_is_refused_at_the_start(
    tmp_path: Path, days: int, usage: ObjectIdentifier
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    cert, private = issued(tmp_path, key, days=days, usage=[usage])
    with pytest.raises(ProvenanceUnusableError, match="MOCHI_C2PA_CERT and MOCHI_C2PA_KEY cannot"):
        marker_of(tmp_path, c2pa_cert=str(cert), c2pa_key=str(private))


@pytest.mark.parametrize(("days", "events"), [(31, []), (29, ["provenance.ends_soon"])])
def test_a_certificate_that_ends_soon_is_told_of_at_the_start(
    tmp_path: Path, days: int, events: list[str]
) -> None:
    """A worker that runs on beyond its end could sign no more, and each request would fail."""
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()), days=days)
    with capture_logs() as logs:
        marker_of(tmp_path, c2pa_cert=str(cert), c2pa_key=str(key))
    assert [log["event"] for log in logs] == events
    end = datetime.now(UTC) + timedelta(days)
    for log in logs:
        assert abs(datetime.fromisoformat(log["ends_at"]) - end) < timedelta(minutes=1)


def test_the_longest_video_is_marked_in_a_moment(
    tmp_path: Path, signing: Marker, figure: Callable[[str], None]
) -> None:
    path = tmp_path / "video.mp4"
    noise = (os.urandom(27 * 15 * 3) for _ in range(160))  # enlarged, it takes room as pictures do
    encode(Clip(27, 15, noise), 16, path)
    encoded = path.read_bytes()
    took, added = [], 0
    for _ in range(5):
        path.write_bytes(encoded)
        began = time.perf_counter(), time.process_time()
        signing.mark(path, MODEL, PROMPT)
        took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        added = path.stat().st_size - len(encoded)
    wall, cpu = (1000 * median(each) for each in zip(*took, strict=True))
    figure(
        f"a video of 160 frames and {len(encoded) / 1e6:.1f} MB is marked in {wall:.0f} ms, "
        f"{cpu:.0f} of them of CPU (medians of 5), and {added:,} bytes longer"
    )
