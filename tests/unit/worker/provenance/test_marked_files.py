"""Marks in files other than the MP4: GIF and JPEG are signed, a WebM says it in its metadata."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import av
import pytest
from PIL import Image
from structlog.testing import capture_logs

from models.mock.fake_engine import FakeEngine
from models.request.params import FORMATS, FileParams, Format, GenerateParams
from models.video.encoding import encode
from models.video.stills import Stills
from worker.errors import StorageError
from worker.provenance.identity import own_identity
from worker.provenance.label import AI_MADE
from worker.provenance.marker import Marker
from worker.provenance.signing import Signer
from worker.provenance.verification import Verdict, verify

MODEL, PROMPT = "Mochi 1", "A red panda drinks tea"
ASKED = GenerateParams(prompt=PROMPT, frames=3, steps=10)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return Marker(Signer(own_identity(tmp_path_factory.mktemp("data"))))


def encoded(path: Path, kind: Format, marker: Marker) -> Path:
    clip = FakeEngine(0).generate(ASKED, lambda *_: None)
    encode(marker.described(clip, MODEL), 16, path, kind)
    return path


def still() -> bytes:
    stills = Stills.of(FileParams(poster=True), ASKED.frames)
    for _ in stills.watching(FakeEngine(0).generate(ASKED, lambda *_: None)).frames:
        pass
    return stills.taken["poster"]


def pictures(data: bytes) -> list[bytes]:
    with Image.open(io.BytesIO(data)) as picture:
        shown: list[bytes] = []
        for index in itertools.count():
            try:
                picture.seek(index)
            except EOFError:
                return shown
            shown.append(picture.convert("RGB").tobytes())
    raise AssertionError


def check_signed(data: bytes) -> None:
    found = verify(io.BytesIO(data), anchors=b"")
    assert (found.verdict, found.model) == (Verdict.UNTRUSTED, MODEL)  # as nothing is trusted
    assert found.is_ai_made
    changed = bytearray(data)
    changed[-20] ^= 1
    assert verify(io.BytesIO(bytes(changed)), anchors=b"").verdict is Verdict.INVALID


@pytest.mark.parametrize("signs", [True, False])
def test_a_gif_has_the_term_and_shows_the_same(
    tmp_path: Path, signing: Marker, *, signs: bool
) -> None:
    marker = signing if signs else Marker()
    path = encoded(tmp_path / "video.gif", "gif", marker)
    before = path.read_bytes()
    marked = b""
    for _ in range(2):
        path.write_bytes(before)
        with capture_logs() as logs:
            marker.mark(path, MODEL, PROMPT, FORMATS["gif"])
        assert logs == []
        assert marked in {b"", path.read_bytes()}
        marked = path.read_bytes()
    assert b"\x21\xff\x0bXMP DataXMP<?xpacket" in marked
    assert AI_MADE.encode() in marked
    assert pictures(marked) == pictures(before)
    assert PROMPT.encode() not in marked
    if signs:
        check_signed(marked)
    with av.open(path) as file:
        assert sum(1 for _ in file.decode(video=0)) == ASKED.frames


@pytest.mark.parametrize("signs", [True, False])
def test_a_still_has_the_term_and_shows_the_same(signing: Marker, *, signs: bool) -> None:
    before = still()
    marker = signing if signs else Marker()
    with capture_logs() as logs:
        marked = [marker.marked_still(before, MODEL, PROMPT) for _ in range(2)]
    assert marked[0] == marked[1]
    assert logs == []
    with Image.open(io.BytesIO(marked[0])) as picture:
        assert AI_MADE.encode() in picture.info["xmp"]
    assert pictures(marked[0]) == pictures(before)
    if signs:
        check_signed(marked[0])


def test_a_webm_says_it_in_its_metadata_and_is_not_changed_after_it(
    tmp_path: Path, signing: Marker
) -> None:
    path = encoded(tmp_path / "video.webm", "webm", signing)
    before = path.read_bytes()
    signing.mark(path, MODEL, PROMPT, FORMATS["webm"])
    assert path.read_bytes() == before
    with av.open(path) as file:
        assert file.metadata["DESCRIPTION"] == f"Made by AI ({MODEL}). {AI_MADE}"
    found = verify(io.BytesIO(before), anchors=b"")
    assert (found.verdict, found.is_ai_made) == (Verdict.UNSIGNED, True)
    assert found.reason.startswith("it is a WebM, in which C2PA has no place; its metadata")


def test_what_cannot_be_signed_is_no_still(signing: Marker) -> None:
    with pytest.raises(StorageError, match="cannot be signed"):
        signing.marked_still(b"\xff\xd8\xff\xe0\x00\x02", MODEL, PROMPT)
