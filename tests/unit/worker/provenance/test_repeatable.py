"""Manifests that depend on the video alone, whatever a client writes into it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from structlog.testing import capture_logs

from worker.provenance import signing
from worker.provenance.identity import own_identity
from worker.provenance.repeatable import UnknownFormError, repeatable
from worker.provenance.signing import Signer
from worker.provenance.verification import Verdict, verify

MODEL = "Mochi 1"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(
    "prompt",
    [
        "a pond",
        "jumdc2cs jumdc2cl c2pa.claim.v2\x00 cbor",
        "\x00\x00\x00\x18c2sh0123456789abcdef",
        "jumb" * 900,
        "",
    ],
    ids=["plain", "labels", "a salt", "long", "empty"],
)
def test_the_same_video_and_prompt_give_the_same_valid_bytes(
    data_dir: Path, small_video: bytes, tmp_path: Path, prompt: str
) -> None:
    identity = own_identity(data_dir)
    signer = Signer(identity, keeps_prompt=True)
    path = tmp_path / "video.mp4"
    signed = []
    for _ in range(2):
        path.write_bytes(small_video)
        signer.sign(path, MODEL, prompt)
        signed.append(path.read_bytes())
    found = verify(io.BytesIO(signed[0]), identity.anchor)
    assert (found.verdict, found.prompt) == (Verdict.TRUSTED, prompt)
    assert signed[0] == signed[1]


def test_salts_of_other_prompts_and_other_keys_are_others(
    tmp_path: Path, small_video: bytes
) -> None:
    path, salts = tmp_path / "video.mp4", set()
    for server in ("ours", "theirs"):
        for prompt in ("a pond", "a lake"):
            path.write_bytes(small_video)
            Signer(own_identity(tmp_path / server), keeps_prompt=True).sign(path, MODEL, prompt)
            start = path.read_bytes().index(b"c2sh") + 4
            salts.add(path.read_bytes()[start : start + 16])
    assert len(salts) == 4


def test_a_manifest_of_another_form_stays_as_the_library_wrote_it(
    data_dir: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = own_identity(data_dir)

    def refuse(*_: object) -> bytes:
        raise UnknownFormError

    monkeypatch.setattr(signing, "repeatable", refuse)
    with capture_logs() as logs:
        Signer(identity).sign(video, MODEL, "")
    assert {log["event"] for log in logs} == {"provenance.not_repeatable"}
    assert verify(io.BytesIO(video.read_bytes()), identity.anchor).verdict is Verdict.TRUSTED


@pytest.mark.parametrize("cut", [0, 4, 100, 700, 1500, 3000])
def test_whatever_is_no_manifest_of_the_key_is_of_another_form(
    data_dir: Path, video: Path, cut: int
) -> None:
    identity = own_identity(data_dir)
    Signer(identity).sign(video, MODEL, "")
    other = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(UnknownFormError):
        repeatable(video.read_bytes(), other, b"")
    with pytest.raises(UnknownFormError):
        repeatable(video.read_bytes()[:cut], other, b"")
