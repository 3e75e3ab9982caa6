"""Verifies C2PA manifests of files, offline. Needs the extra `provenance`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any

from c2pa import C2paError, Context, Reader, Settings

from worker.provenance.label import AI_MADE

SETTINGS: dict[str, Any] = {
    "verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False}
}
CHANGED_PICTURES = ("assertion.bmffHash.", "assertion.dataHash.", "assertion.boxesHash.")
CHANGED_CLAIM = ("assertion.", "claim.", "claimSignature.mismatch", "manifest.")
UNTRUSTED = "signingCredential.untrusted"


class Verdict(StrEnum):
    """What a file's manifest proves."""

    TRUSTED = "trusted"
    """The file is as it was signed, by a certificate that leads to a trusted one."""
    UNTRUSTED = "untrusted"
    """As it was signed, but anybody can make such a certificate."""
    INVALID = "invalid"
    """It was changed after it was signed, or the signature does not hold."""
    UNSIGNED = "unsigned"
    """It has no manifest. Whether AI made it is not known."""


@dataclass(frozen=True)
class Finding:
    """What was found, and what the manifest says, which counts only if it is trusted.

    Attributes:
        verdict: see `Verdict`.
        reason: why it is not trusted, as a clause; empty if it is.
        signer: organisation and name in the certificate.
        software: that made the manifest, with its version.
        model: that made the video.
        prompt: that it was made from, if that was stored.
        source: IPTC's digital source type.
        signed_at: by a timestamp authority, in RFC 3339; without one the time is not known.
        codes: of C2PA, for each failure.
    """

    verdict: Verdict
    reason: str = ""
    signer: str = ""
    software: str = ""
    model: str = ""
    prompt: str = ""
    source: str = ""
    signed_at: str = ""
    codes: tuple[str, ...] = ()

    @property
    def is_ai_made(self) -> bool:
        """Whether the manifest says so."""
        return self.source == AI_MADE


def verify(file: IO[bytes], anchors: bytes) -> Finding:
    """Check a file against its manifest.

    Args:
        file: an MP4, or another format that the library knows. It may raise OSError.
        anchors: PEM certificates to trust; empty for none.
    """
    trust = {"trust": {"user_anchors": anchors.decode()}} if anchors else {}
    try:
        reader = Reader(file, context=Context(Settings.from_dict(SETTINGS | trust)))
    except C2paError.ManifestNotFound:
        return Finding(Verdict.UNSIGNED, "it has no C2PA manifest")
    except C2paError as error:
        return Finding(Verdict.INVALID, f"its manifest cannot be read: {error}")
    with reader:
        manifest = reader.get_active_manifest() or {}
        state = reader.get_validation_state()
        codes = tuple(_failures(reader.get_validation_results() or {}))
    verdict = {"Trusted": Verdict.TRUSTED, "Valid": Verdict.UNTRUSTED}.get(state, Verdict.INVALID)
    return Finding(verdict, _reason(verdict, codes), **_claims(manifest), codes=codes)


def _failures(results: dict[str, Any]) -> Iterator[str]:
    for failure in results.get("activeManifest", {}).get("failure", []):
        yield failure["code"]


def _reason(verdict: Verdict, codes: tuple[str, ...]) -> str:
    if verdict is Verdict.TRUSTED:
        return ""
    if verdict is Verdict.UNTRUSTED:
        return "its certificate leads to none that is trusted here"
    if any(code.startswith(CHANGED_PICTURES) for code in codes):
        return "it was changed after it was signed"
    if any(code.startswith(CHANGED_CLAIM) for code in codes):
        return "its manifest was changed after it was signed"
    return "its signature does not hold"


def _claims(manifest: dict[str, Any]) -> dict[str, str]:
    signature = manifest.get("signature_info", {})
    created = _created(manifest)
    parameters = created.get("parameters", {})
    software = (manifest.get("claim_generator_info") or [{}])[0]
    return {
        "signer": ", ".join(filter(None, map(signature.get, ("issuer", "common_name")))),
        "software": " ".join(filter(None, map(software.get, ("name", "version")))),
        "model": str(parameters.get("model", "")),
        "prompt": str(parameters.get("prompt", "")),
        "source": str(created.get("digitalSourceType", "")),
        "signed_at": str(signature.get("time", "")),
    }


def _created(manifest: dict[str, Any]) -> dict[str, Any]:
    """The action that made the video."""
    for assertion in manifest.get("assertions", []):
        if assertion["label"].startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                if action.get("action") == "c2pa.created":
                    return dict(action)
    return {}
