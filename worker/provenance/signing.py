"""Signs files with C2PA manifests, offline. Needs the extra `provenance`."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from c2pa import Builder, C2paError, C2paSignerInfo, Context, Settings
from c2pa import Signer as LibrarySigner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from models.request.params import FORMATS
from models.version import this_build
from worker.errors import ProvenanceUnusableError, StorageError
from worker.provenance.identity import Identity
from worker.provenance.label import AI_MADE, GENERATOR
from worker.provenance.repeatable import UnknownFormError, repeatable
from worker.provenance.verification import Verdict, verify

MP4 = FORMATS["mp4"]
SETTINGS = {
    "verify": {"verify_after_sign": False},  # `_checked` does, of what leaves this process
    "builder": {"thumbnail": {"enabled": False}},
}
_SMALLEST = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00\x00\x00\x00\x08mdat"
"""An MP4 for a trial."""

_log = structlog.get_logger()


class Signer:
    """Signs with one identity. Not for several threads at once."""

    def __init__(self, identity: Identity, *, keeps_prompt: bool = False) -> None:
        """Signs once for a trial: a certificate can be unfit in many ways that the library knows.

        Raises:
            ProvenanceUnusableError: the library refuses the certificates or the key.
        """
        self._keeps_prompt = keeps_prompt
        key = load_pem_private_key(identity.key, None)
        self._key = key if isinstance(key, Ed25519PrivateKey) else None
        try:
            # No timestamp authority: a worker needs no internet.
            info = C2paSignerInfo(identity.algorithm, identity.chain, identity.key, None)
            signer = LibrarySigner.from_info(info)
            self._context = Context(Settings.from_dict(SETTINGS), signer)
            self._signed(_SMALLEST, "trial", "", MP4)
        except C2paError as error:
            raise ProvenanceUnusableError(
                f"MOCHI_C2PA_CERT and MOCHI_C2PA_KEY cannot sign: {error}. C2PA wants a "
                "certificate of a certificate authority for signing, with the extended key usage "
                "emailProtection, documentSigning or C2PA's own, and all up to the root after it."
            ) from None

    def sign(self, video: Path, model: str, prompt: str, media_type: str = MP4) -> None:
        """Put a signed manifest into a video, in place. See `signed`.

        Raises:
            StorageError: the library cannot sign it.
            OSError: it cannot be read or written; it may be torn.
        """
        video.write_bytes(self.signed(video.read_bytes(), model, prompt, media_type))

    def signed(self, data: bytes, model: str, prompt: str, media_type: str) -> bytes:
        """The same file with a signed manifest. In an MP4 the index stays before the pictures.

        Raises:
            StorageError: the library cannot sign it.
        """
        try:
            return self._signed(data, model, prompt, media_type)
        except C2paError as error:
            _log.error("provenance.failed", reason=str(error))
            raise StorageError(
                "The video cannot be signed, so it is not kept. The server's log says more."
            ) from error

    def _signed(self, data: bytes, model: str, prompt: str, media_type: str) -> bytes:
        kept = prompt if self._keeps_prompt else ""
        manifest = json.dumps(_manifest(data, model, kept, media_type))
        signed = BytesIO()
        with Builder(manifest, self._context) as builder:
            builder.sign(media_type, BytesIO(data), signed)
        if self._key is None:
            return _checked(signed.getvalue())
        try:
            return _checked(repeatable(signed.getvalue(), self._key, manifest.encode()))
        except UnknownFormError:
            _log.warning("provenance.not_repeatable")
            return _checked(signed.getvalue())


def _checked(data: bytes) -> bytes:
    """The same, unless readers would not accept its signature. Raises C2paError."""
    found = verify(BytesIO(data), anchors=b"")
    if found.verdict is not Verdict.UNTRUSTED:  # as nothing is trusted
        raise C2paError(f"{found.reason} ({', '.join(found.codes)})")
    return data


def _manifest(data: bytes, model: str, prompt: str, media_type: str) -> dict[str, Any]:
    """What is claimed of a file, in the library's form.

    The ids are drawn from the contents, so that equal videos get equal manifests.
    """
    software = {"name": GENERATOR, "version": this_build().version}
    digest = hashlib.sha256(data).digest()
    label, instance = (UUID(bytes=half, version=4) for half in (digest[:16], digest[16:]))
    created = {
        "action": "c2pa.created",
        "digitalSourceType": AI_MADE,
        "softwareAgent": software,
        # One entry, as the library writes several in any order.
        "parameters": {GENERATOR: {"model": model} | ({"prompt": prompt} if prompt else {})},
    }
    return {
        "label": f"urn:c2pa:{label}",
        "instance_id": f"xmp:iid:{instance}",
        "format": media_type,
        "claim_generator_info": [software],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}, "created": True}
        ],
    }
