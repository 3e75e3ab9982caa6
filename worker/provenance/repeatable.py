"""Gives equal videos equal manifests, as equal requests are to give equal bytes.

The library salts each assertion with random bytes, which no setting turns off. They change its hash
in the claim, and so the signature of the claim: nothing else differs between two manifests of a
video. Here the salts are drawn from the key and the video instead, which keeps them unguessable,
and the claim is signed again. All lengths stay, so no offset changes.

Sources: ISO 19566-5 (JUMBF) for the boxes, RFC 9052 (COSE) for the signature.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SALT = re.compile(rb"\x00\x00\x00\x18c2sh(?P<salt>.{16})", re.DOTALL)
_BYTES_OF_64 = b"\x58\x40"
_SIGN1 = b"\xd2\x84"
"""COSE_Sign1: a tag, and an array of four. The signature is its last item."""


class UnknownFormError(Exception):
    """The library writes another form than this module knows."""


def repeatable(signed: bytes, key: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """The same video, signed again with salts that are always the same.

    Args:
        signed: by the library, with `key`.
        key: of the signature.
        manifest: what is claimed, of this video alone: the salts are drawn from it and the key.

    Raises:
        UnknownFormError: it is not what the library wrote when this was written.
    """
    video = bytearray(signed)
    try:
        cose = _content(signed, b"c2cs", _manifest_end(signed))
        claim = _content(signed, b"c2cl", cose.start)
    except ValueError:
        raise UnknownFormError from None
    protected = _protected(signed[cose])
    signature = slice(cose.stop - 64, cose.stop)
    try:
        key.public_key().verify(signed[signature], _to_be_signed(protected, signed[claim]))
    except InvalidSignature:
        raise UnknownFormError from None
    secret = hmac.digest(key.private_bytes_raw(), manifest, "sha256")
    for number, match in enumerate(_SALT.finditer(signed, 0, claim.start)):
        assertion = _box_around(signed, match.start())
        before = sha256(signed[assertion]).digest()
        salt = hmac.digest(secret, number.to_bytes(1), "sha256")
        video[match.start("salt") : match.end("salt")] = salt[:16]
        if signed.count(before, claim.start, claim.stop) != 1:
            raise UnknownFormError
        place = signed.index(before, claim.start)
        video[place : place + 32] = sha256(video[assertion]).digest()
    video[signature] = key.sign(_to_be_signed(protected, bytes(video[claim])))
    return bytes(video)


def _manifest_end(video: bytes) -> int:
    """It is the second box of the file. Beyond are pictures, and texts of clients."""
    start = int.from_bytes(video[:4])
    return start + int.from_bytes(video[start : start + 4])


def _content(video: bytes, kind: bytes, before: int) -> slice:
    """The CBOR in the last box of a kind. Raises ValueError if there is none."""
    described = video.rindex(b"jumd" + kind, 0, before)
    # A UUID of 16 bytes, which begins with the kind, a byte of flags, and the label.
    start = video.index(b"\x00", described + 4 + 16 + 1) + 1
    if video[start + 4 : start + 8] != b"cbor":
        raise UnknownFormError
    return slice(start + 8, start + int.from_bytes(video[start : start + 4]))


def _box_around(video: bytes, place: int) -> slice:
    """The contents of the box whose description has this place."""
    start = video.rfind(b"jumd", 0, place) - 4
    return slice(start, start - 8 + int.from_bytes(video[start - 8 : start - 4]))


def _protected(cose: bytes) -> bytes:
    """The protected header of a COSE_Sign1, with its length, as it is signed."""
    size = {0x58: 1, 0x59: 2}.get(cose[2])
    if not cose.startswith(_SIGN1) or size is None or cose[-66:-64] != _BYTES_OF_64:
        raise UnknownFormError
    return cose[2 : 3 + size + int.from_bytes(cose[3 : 3 + size])]


def _to_be_signed(protected: bytes, claim: bytes) -> bytes:
    """RFC 9052, 4.4: context, protected header, no external data, payload."""
    return b"\x84\x6aSignature1" + protected + b"\x40\x59" + len(claim).to_bytes(2) + claim
