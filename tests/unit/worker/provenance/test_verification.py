"""What the manifest of a file proves, and that each change of the file is found."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.worker.support.certificates import issued
from worker.provenance import identity as identities
from worker.provenance.identity import Identity, given_identity, own_identity
from worker.provenance.label import AI_MADE, append_xmp
from worker.provenance.signing import Signer
from worker.provenance.verification import Finding, Verdict, _claims
from worker.provenance.verification import verify as verify_stream

MODEL, PROMPT = "Mochi 1", "A red panda drinks tea"
NO_MANIFEST = (
    "it has no C2PA manifest: it was never signed, or its marks were removed or damaged, so this "
    "proves nothing"
)
NO_KIND = "it is no MP4, GIF, JPEG or WebM, or its first bytes are damaged"


def verify(path: Path, anchors: bytes) -> Finding:
    with path.open("rb") as file:
        return verify_stream(file, anchors)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return own_identity(tmp_path_factory.mktemp("data"))


@pytest.fixture
def signed(video: Path, identity: Identity) -> Path:
    Signer(identity, keeps_prompt=True).sign(video, MODEL, PROMPT)
    return video


def test_a_video_of_this_server_is_trusted_and_says_what_made_it(
    signed: Path, identity: Identity
) -> None:
    found = verify(signed, identity.anchor)
    assert (found.verdict, found.reason) == (Verdict.TRUSTED, "")
    assert found.is_ai_made
    assert (found.model, found.prompt, found.source) == (MODEL, PROMPT, AI_MADE)
    assert found.software.startswith("mochi-server ")
    assert found.signer.startswith("mochi-server, mochi-server ")
    assert found.signed_at == ""


@pytest.mark.parametrize("kind", [b"mdat", b"moov", b"urn:c2pa", b"trainedAlgorithmic"])
def test_one_flipped_bit_is_found(signed: Path, identity: Identity, kind: bytes) -> None:
    data = signed.read_bytes()
    signed.write_bytes(flipped(data, data.index(kind) + len(kind) + 12))
    found = verify(signed, identity.anchor)
    assert found.verdict is Verdict.INVALID
    assert found.reason


def test_every_flipped_bit_of_index_pictures_and_metadata_is_found(
    signed: Path, identity: Identity
) -> None:
    data = signed.read_bytes()
    for place in range(data.index(b"moov") - 4, len(data), 5):
        found = verify_stream(io.BytesIO(flipped(data, place)), identity.anchor)
        assert found.verdict is Verdict.INVALID, place


def test_no_flipped_bit_of_the_manifest_changes_what_a_trusted_one_says(
    signed: Path, identity: Identity
) -> None:
    """The padding and the file's type are not covered by the signature."""
    data = signed.read_bytes()
    original = verify(signed, identity.anchor)
    for place in range(0, data.index(b"moov") - 4, 5):
        found = verify_stream(io.BytesIO(flipped(data, place)), identity.anchor)
        assert found == original or found.verdict is not Verdict.TRUSTED, place


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_byte_of_the_pictures_and_one_of_the_manifest_are_told_apart(
    signed: Path, identity: Identity
) -> None:
    data = signed.read_bytes()
    reasons = []
    for place in (data.index(b"mdat") + 40, data.index(MODEL.encode())):
        signed.write_bytes(flipped(data, place))
        reasons.append(verify(signed, identity.anchor).reason)
    assert reasons == [
        "it was changed after it was signed",
        "its manifest was changed after it was signed",
    ]


def test_bytes_added_at_the_end_are_found(signed: Path, identity: Identity) -> None:
    with signed.open("ab") as file:
        file.write(b"\x00\x00\x00\x0cmdathole")
    assert verify(signed, identity.anchor).verdict is Verdict.INVALID


@pytest.mark.parametrize("place", [8, 12, 16, 31])
def test_a_change_of_the_files_type_is_not_found(
    signed: Path, identity: Identity, place: int
) -> None:
    """As docs/operate/provenance.md says: C2PA leaves it out."""
    data = signed.read_bytes()
    assert data[4:8] == b"ftyp"
    found = verify_stream(io.BytesIO(flipped(data, place)), identity.anchor)
    assert found.verdict is Verdict.TRUSTED


@pytest.mark.parametrize(
    "box", [b"\x00\x00\x00\x0cfreehole", b"\x00\x00\x00\x0cskiphole", b"\x00\x00\x00\x08mfra"]
)
def test_an_added_box_without_pictures_is_found_only_where_it_moves_them(
    signed: Path, identity: Identity, box: bytes
) -> None:
    """As docs/operate/provenance.md says: C2PA leaves it out."""
    data = signed.read_bytes()
    index = data.index(b"moov") - 4
    at_end, between = data + box, data[:index] + box + data[index:]
    assert verify_stream(io.BytesIO(at_end), identity.anchor).verdict is Verdict.TRUSTED
    assert verify_stream(io.BytesIO(between), identity.anchor).verdict is Verdict.INVALID


@pytest.mark.parametrize("offset", [4, 8, 12])
def test_a_damaged_box_of_the_manifest_is_not_said_to_have_never_been_there(
    signed: Path, identity: Identity, offset: int
) -> None:
    data = signed.read_bytes()
    box = data.index(b"uuid") - 4
    found = verify_stream(io.BytesIO(flipped(data, box + offset)), identity.anchor)
    assert found.verdict is Verdict.UNSIGNED
    assert found.reason.startswith(NO_MANIFEST)


def test_a_video_of_another_server_is_not_trusted(
    signed: Path, identity: Identity, tmp_path: Path
) -> None:
    other = own_identity(tmp_path / "other")
    for anchors in (b"", other.anchor):
        found = verify(signed, anchors)
        assert found.verdict is Verdict.UNTRUSTED
        assert found.model == MODEL


def test_a_video_without_a_manifest_is_unsigned(video: Path, identity: Identity) -> None:
    found = verify(video, identity.anchor)
    assert (found.verdict, found.reason) == (Verdict.UNSIGNED, NO_MANIFEST)
    assert not found.is_ai_made


def test_the_metadata_of_a_video_without_a_manifest_proves_nothing(
    video: Path, identity: Identity
) -> None:
    append_xmp(video)
    found = verify(video, identity.anchor)
    assert (found.verdict, found.is_ai_made) == (Verdict.UNSIGNED, True)
    assert "which anybody can write" in found.reason


@pytest.mark.parametrize("content", [b"", b"no video", bytes(100)], ids=["empty", "text", "zeros"])
def test_a_file_of_another_kind_is_unsigned(content: bytes) -> None:
    found = verify_stream(io.BytesIO(content), b"")
    assert (found.verdict, found.reason) == (Verdict.UNSIGNED, NO_KIND)


@pytest.mark.parametrize("start", [0, 2**20 - 10, 3 * 2**20])
def test_the_metadata_of_a_file_of_another_kind_are_told_of_too(start: int) -> None:
    found = verify_stream(io.BytesIO(bytes(start) + AI_MADE.encode()), b"")
    assert (found.verdict, found.is_ai_made) == (Verdict.UNSIGNED, True)
    assert found.reason.startswith(f"{NO_KIND}; its metadata, which anybody")


@pytest.mark.parametrize("odd", [None, 7, "text", [], [7], {}, {"actions": [7, {}]}])
def test_a_manifest_may_say_anything_anywhere(odd: object) -> None:
    """Any program may have made it."""
    names = ("signature_info", "claim_generator_info", "assertions")
    actions = {"assertions": [{"label": "c2pa.actions.v2", "data": odd}]}
    created = {"action": "c2pa.created", "parameters": odd, "digitalSourceType": odd}
    nested = {"assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}]}
    for manifest in (odd, dict.fromkeys(names, odd), actions, nested):
        claims = _claims(manifest)
        assert all(isinstance(text, str) for text in claims.values())


def test_a_video_whose_certificate_has_expired_is_told_from_a_changed_one(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature has no time, so it holds as long as its certificate."""
    monkeypatch.setattr(identities, "LIFE", timedelta(seconds=3))
    own = own_identity(tmp_path / "data")
    Signer(own).sign(video, MODEL, PROMPT)
    time.sleep(
        max(0.0, (own.certificates[0].not_valid_after_utc - datetime.now(UTC)).total_seconds()) + 1
    )
    found = verify(video, own.anchor)
    assert (found.verdict, "signingCredential.expired" in found.codes) == (Verdict.INVALID, True)
    assert (
        found.reason == "its certificate has expired, or is not valid yet by this machine's clock"
    )
    video.write_bytes(flipped(video.read_bytes(), -40))
    assert verify(video, own.anchor).reason == "it was changed after it was signed"


def test_an_operators_certificate_is_trusted_by_its_root(tmp_path: Path, video: Path) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    given = given_identity(str(cert), str(key))
    Signer(given).sign(video, MODEL, PROMPT)
    found = verify(video, given.anchor)
    assert (found.verdict, found.signer) == (Verdict.TRUSTED, "Example, Example Films")
