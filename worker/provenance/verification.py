"""Verifies C2PA manifests of files, offline. Needs the extra `provenance`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any, TypeVar

from c2pa import C2paError, Context, Reader, Settings

from worker.provenance.label import AI_MADE, GENERATOR

SETTINGS: dict[str, Any] = {
    "verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False}
}
CHANGED_PICTURES = ("assertion.bmffHash.", "assertion.dataHash.", "assertion.boxesHash.")
CHANGED_CLAIM = ("assertion.", "claim.", "claimSignature.mismatch", "manifest.")
NO_MANIFEST = (
    "it has no C2PA manifest: it was never signed, or its marks were removed or damaged, so this "
    "proves nothing"
)
NO_KIND = "it is no MP4, GIF, JPEG or WebM, or its first bytes are damaged"
WEBM = b"\x1a\x45\xdf\xa3"
"""Its first bytes, those of EBML (RFC 8794)."""
PART = 2**20
"""Bytes that are searched at once: a file may be larger than the memory."""
EXPIRED = "signingCredential.expired"
"""Or not valid yet."""

_Kind = TypeVar("_Kind", str, list[Any], dict[str, Any])


class Verdict(StrEnum):
    """What a file's manifest proves."""

    TRUSTED = "trusted"
    """What the signature covers is as it was signed, by a certificate that leads to a trusted one.

    C2PA leaves out parts of an MP4 that hold no picture and no text: `ftyp`, `free`, `skip`,
    `mfra`, and the manifest's padding.
    """
    UNTRUSTED = "untrusted"
    """As it was signed, but anybody can make such a certificate."""
    INVALID = "invalid"
    """It was changed after it was signed, or the signature does not hold."""
    UNSIGNED = "unsigned"
    """It has no manifest, so nothing is proven."""


STATES = {"Trusted": Verdict.TRUSTED, "Valid": Verdict.UNTRUSTED}
"""Of the library. Any other is a failure."""


@dataclass(frozen=True)
class Finding:
    """What was found, and what the file says of itself, which counts only if it is trusted.

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
        """Whether the file says so."""
        return self.source == AI_MADE


def verify(file: IO[bytes], anchors: bytes) -> Finding:
    """Check a file against its manifest.

    Args:
        file: an MP4, or another format that the library knows. It may raise OSError.
        anchors: PEM certificates to trust; empty for none.
    """
    trust = {"trust": {"user_anchors": anchors.decode()}} if anchors else {}
    try:
        with Reader(file, context=Context(Settings.from_dict(SETTINGS | trust))) as reader:
            store = json.loads(reader.json())
    except C2paError.ManifestNotFound:
        return _unsigned(file, NO_MANIFEST)
    except C2paError.NotSupported:
        file.seek(0)
        is_webm = file.read(len(WEBM)) == WEBM
        return _unsigned(file, "it is a WebM, in which C2PA has no place" if is_webm else NO_KIND)
    except C2paError as error:
        return Finding(Verdict.INVALID, f"its manifest cannot be read: {error}")
    # A damaged store may lack its active manifest.
    manifest = _at(store, dict, "manifests", _at(store, str, "active_manifest"))
    codes = tuple(_failures(_at(store, dict, "validation_results")))
    verdict = STATES.get(_at(store, str, "validation_state"), Verdict.INVALID)
    return Finding(verdict, _reason(verdict, codes), **_claims(manifest), codes=codes)


def _unsigned(file: IO[bytes], reason: str) -> Finding:
    if _says_ai_made_it(file):
        reason += "; its metadata, which anybody can write, says AI made it"
        return Finding(Verdict.UNSIGNED, reason, source=AI_MADE)
    return Finding(Verdict.UNSIGNED, reason)


def _says_ai_made_it(file: IO[bytes]) -> bool:
    term, before = AI_MADE.encode(), b""
    file.seek(0)
    while part := file.read(PART):
        if term in before + part:
            return True
        before = (before + part)[-len(term) :]
    return False


def _failures(results: object) -> Iterator[str]:
    for failure in _at(results, list, "activeManifest", "failure"):
        yield _at(failure, str, "code")


def _reason(verdict: Verdict, codes: tuple[str, ...]) -> str:
    if verdict is Verdict.TRUSTED:
        return ""
    if verdict is Verdict.UNTRUSTED:
        return "its certificate leads to none that is trusted here"
    if any(code.startswith(CHANGED_PICTURES) for code in codes):
        return "it was changed after it was signed"
    if any(code.startswith(CHANGED_CLAIM) for code in codes):
        return "its manifest was changed after it was signed"
    if EXPIRED in codes:
        return "its certificate has expired, or is not valid yet by this machine's clock"
    return "its signature does not hold"


def _claims(manifest: object) -> dict[str, str]:
    """Of a manifest that anybody may have written: fields may be missing, or of any kind."""
    signature = _at(manifest, dict, "signature_info")
    software: object = next(iter(_at(manifest, list, "claim_generator_info")), None)
    created = _created(manifest)
    return {
        "signer": _joined(", ", signature, "issuer", "common_name"),
        "software": _joined(" ", software, "name", "version"),
        "model": _at(created, str, "parameters", GENERATOR, "model"),
        "prompt": _at(created, str, "parameters", GENERATOR, "prompt"),
        "source": _at(created, str, "digitalSourceType"),
        "signed_at": _at(signature, str, "time"),
    }


def _created(manifest: object) -> object:
    """The action that made the video."""
    for assertion in _at(manifest, list, "assertions"):
        if _at(assertion, str, "label").startswith("c2pa.actions"):
            for action in _at(assertion, list, "data", "actions"):
                if _at(action, str, "action") == "c2pa.created":
                    return action
    return None


def _joined(between: str, value: object, *names: str) -> str:
    return between.join(filter(None, (_at(value, str, name) for name in names)))


def _at(value: object, kind: type[_Kind], *path: str) -> _Kind:
    """What stands at a path of names; empty where it does not, or is of another kind."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else kind()
