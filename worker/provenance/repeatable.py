"""Gives equal videos equal manifests, as equal requests are to give equal bytes.

The library salts each assertion with random bytes, which no setting turns off. They change its hash
in the claim, and so the signature of the claim: nothing else differs between two manifests of a
video. Here the salts are drawn from the key and the video instead, which keeps them unguessable,
and the claim is signed again. All lengths stay, so no offset changes.

Sources: ISO 19566-5 (JUMBF) for the boxes, RFC 9052 (COSE) for the signature.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HEAD = 8
"""Of each box: its length and its type."""
_STORE_AT = _HEAD + 16 + 4 + len(b"manifest\x00") + 8
"""In the box of the manifest: its head, UUID, version, purpose and an offset come first."""
_GIF = b"GIF"
_GIF_EXTENSION = b"\x21\xff\x0bC2PA_GIF\x01\x00\x00"
_JPEG = b"\xff\xd8"
_STORE_AT_JPEG = 2 + 2 + 2 + 2 + 4
"""In a segment APP11: marker, length, `JP`, a number and a sequence come first."""
_SALT_HEAD = b"\x00\x00\x00\x18c2sh"
"""Of the box that ends the description of an assertion: 16 bytes follow."""
_SIGN1 = b"\xd2\x84"
"""COSE_Sign1: a tag, and an array of four. The signature is its last item."""
_BYTES_OF_64 = b"\x58\x40"


class UnknownFormError(Exception):
    """The library writes another form than this module knows."""


class Box(NamedTuple):
    """Where the contents of a box are. A superbox has boxes: a description, then others."""

    start: int
    stop: int


def repeatable(signed: bytes, key: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """The same video, signed again with salts that are always the same.

    Args:
        signed: by the library, with `key`.
        key: of the signature.
        manifest: what is claimed, of this video alone: the salts are drawn from it and the key.

    Raises:
        UnknownFormError: it is not what the library wrote when this was written.
    """
    try:
        secret = hmac.digest(key.private_bytes_raw(), manifest, "sha256")
        if not signed.startswith(_GIF):
            return _signed_again(signed, key, secret)
        places = list(_gif_blocks(signed))
        store = b"".join(signed[each] for each in places)
        left, file = iter(_signed_again(store, key, secret)), bytearray(signed)
        for each in places:
            file[each] = bytes(islice(left, each.stop - each.start))
        return bytes(file)
    except (ValueError, KeyError, IndexError, InvalidSignature) as error:
        raise UnknownFormError from error


def _signed_again(signed: bytes, key: Ed25519PrivateKey, secret: bytes) -> bytes:
    video = bytearray(signed)
    parts = _parts(signed)
    assertions, claim, cose = (parts[kind] for kind in (b"c2as", b"c2cl", b"c2cs"))
    _, claim = _boxes(signed, claim)
    _, cose = _boxes(signed, cose)
    protected = _protected(signed[slice(*cose)])
    signature = slice(cose.stop - 64, cose.stop)
    key.public_key().verify(signed[signature], _to_be_signed(protected, signed[slice(*claim)]))
    _, *contents = _boxes(signed, assertions)
    for number, assertion in enumerate(contents):
        before = sha256(signed[slice(*assertion)]).digest()
        salt = hmac.digest(secret, number.to_bytes(1), "sha256")
        video[_salt(signed, assertion)] = salt[:16]
        place = signed.index(before, *claim)
        video[place : place + 32] = sha256(video[slice(*assertion)]).digest()
    video[signature] = key.sign(_to_be_signed(protected, bytes(video[slice(*claim)])))
    return bytes(video)


def _parts(video: bytes) -> dict[bytes, Box]:
    """The superboxes of the one manifest, by the kind that their description begins with."""
    (store,) = _boxes(video, _around_store(video))
    _, manifest = _boxes(video, store)
    _, *parts = _boxes(video, manifest)
    return {_kind(video, part): part for part in parts}


def _gif_blocks(gif: bytes) -> Iterator[slice]:
    """The pieces of the manifest: each has its length before it, and the last one is empty."""
    start = gif.index(_GIF_EXTENSION) + len(_GIF_EXTENSION)
    while size := gif[start]:
        yield slice(start + 1, start + 1 + size)
        start += 1 + size


def _around_store(video: bytes) -> Box:
    """What has the manifest alone: in an MP4 the second box, in a JPEG the second segment.

    A manifest of more than 64 kB would be in several segments. Then its box does not fill this one.
    """
    if video[4:8] == b"jumb":
        return Box(0, len(video))  # it is all
    if video.startswith(_JPEG):
        start = 4 + int.from_bytes(video[4:6])  # after JFIF's
        return Box(start + _STORE_AT_JPEG, start + 2 + int.from_bytes(video[start + 2 : start + 4]))
    start = int.from_bytes(video[:4])  # after the file's type
    return Box(start + _STORE_AT, start + int.from_bytes(video[start : start + 4]))


def _kind(video: bytes, superbox: Box) -> bytes:
    description = next(_boxes(video, superbox))
    return video[description.start : description.start + 4]


def _boxes(video: bytes, within: Box) -> Iterator[Box]:
    """The boxes in a superbox. Raises ValueError where they do not fill it."""
    start = within.start
    while start < within.stop:
        size = int.from_bytes(video[start : start + 4])
        if not _HEAD <= size <= within.stop - start:
            raise ValueError(size)
        yield Box(start + _HEAD, start + size)
        start += size


def _salt(video: bytes, assertion: Box) -> slice:
    end = next(_boxes(video, assertion)).stop
    if video[end - 24 : end - 16] != _SALT_HEAD:
        raise ValueError(end)
    return slice(end - 16, end)


def _protected(cose: bytes) -> bytes:
    """The protected header of a COSE_Sign1, with its length, as it is signed."""
    if not cose.startswith(_SIGN1) or cose[-66:-64] != _BYTES_OF_64:
        raise ValueError(cose)
    size = {0x58: 1, 0x59: 2}[cose[2]]
    return cose[2 : 3 + size + int.from_bytes(cose[3 : 3 + size])]


def _to_be_signed(protected: bytes, claim: bytes) -> bytes:
    """RFC 9052, 4.4: context, protected header, no external data, payload."""
    return b"\x84\x6aSignature1" + protected + b"\x40\x59" + len(claim).to_bytes(2) + claim
