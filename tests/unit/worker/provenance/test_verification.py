"""What the manifest of a file proves, and that each change of the file is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.worker.support.certificates import issued
from worker.provenance.identity import Identity, given_identity, own_identity
from worker.provenance.label import AI_MADE
from worker.provenance.signing import Signer
from worker.provenance.verification import Finding, Verdict
from worker.provenance.verification import verify as verify_stream

MODEL, PROMPT = "Mochi 1", "A red panda drinks tea"


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
    data = bytearray(signed.read_bytes())
    data[data.index(kind) + len(kind) + 12] ^= 1
    signed.write_bytes(data)
    found = verify(signed, identity.anchor)
    assert found.verdict is Verdict.INVALID
    assert found.reason


def test_a_byte_of_the_pictures_and_one_of_the_manifest_are_told_apart(
    signed: Path, identity: Identity
) -> None:
    data = signed.read_bytes()
    reasons = []
    for place in (data.index(b"mdat") + 40, data.index(MODEL.encode())):
        changed = bytearray(data)
        changed[place] ^= 1
        signed.write_bytes(changed)
        reasons.append(verify(signed, identity.anchor).reason)
    assert reasons == [
        "it was changed after it was signed",
        "its manifest was changed after it was signed",
    ]


def test_bytes_added_at_the_end_are_found(signed: Path, identity: Identity) -> None:
    with signed.open("ab") as file:
        file.write(b"\x00\x00\x00\x0cmdathole")
    assert verify(signed, identity.anchor).verdict is Verdict.INVALID


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
    assert (found.verdict, found.reason) == (Verdict.UNSIGNED, "it has no C2PA manifest")
    assert not found.is_ai_made


def test_a_file_of_another_kind_has_no_valid_manifest(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no video")
    assert verify(path, b"").verdict in {Verdict.INVALID, Verdict.UNSIGNED}


def test_an_operators_certificate_is_trusted_by_its_root(tmp_path: Path, video: Path) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    given = given_identity(str(cert), str(key))
    Signer(given).sign(video, MODEL, PROMPT)
    found = verify(video, given.anchor)
    assert (found.verdict, found.signer) == (Verdict.TRUSTED, "Example, Example Films")
