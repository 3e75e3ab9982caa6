"""What signs videos: a key and its certificates, given by the operator or made at the first start.

A certificate that we made is in no trust list. Its own certificate authority signs nothing else:
the authority's key is forgotten once the certificate is signed, so it cannot leak.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from models.settings import make_private_folder, sync
from worker.errors import ProvenanceUnusableError

FOLDER = "provenance"
"""Below the data folder."""
FILE = "identity.pem"
"""Key, certificate and its authority's: one file, so that they cannot differ."""
LIFE = timedelta(days=3652)
RENEWED_BEFORE = timedelta(days=365)
"""The end. A worker that runs on beyond it could sign no more, so it is long."""
SKEW = timedelta(days=1)
"""By which clocks of other machines may be behind."""
PURPOSE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
"""One of those that C2PA asks of a certificate that signs."""
_TIME = "%Y-%m-%dT%H:%M:%SZ"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Identity:
    """A key and its certificates.

    Attributes:
        algorithm: C2PA's name of the signature, such as `ed25519`.
        key: PEM, PKCS #8, not encrypted.
        certificates: the key's first, then those that lead to its root.
    """

    algorithm: str
    key: bytes
    certificates: tuple[x509.Certificate, ...]

    @property
    def chain(self) -> bytes:
        """The certificates as PEM."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.certificates)

    @property
    def anchor(self) -> bytes:
        """The last certificate as PEM: who trusts it trusts the signatures."""
        return self.certificates[-1].public_bytes(Encoding.PEM)

    @property
    def ends_at(self) -> datetime:
        """When the first of the certificates does. It signs nothing from then on."""
        return min(each.not_valid_after_utc for each in self.certificates)


def given_identity(certificates: str, key: str) -> Identity:
    """The operator's, from the files of MOCHI_C2PA_CERT and MOCHI_C2PA_KEY.

    Raises:
        ProvenanceUnusableError: a file cannot be used. The text names its variable.
    """
    try:
        chain = x509.load_pem_x509_certificates(Path(certificates).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable("CERT", certificates, error) from None
    try:
        private = load_pem_private_key(Path(key).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: it has a passphrase
        raise _unreadable("KEY", key, error) from None
    try:
        return _identity(private, chain)
    except ValueError as error:
        raise _unusable("KEY", key, str(error)) from None


def own_identity(data_dir: Path, now: datetime | None = None) -> Identity:
    """The server's own, which the first start makes. Of processes that start together, one does.

    It is made anew in the last year of its life.

    Raises:
        ProvenanceUnusableError: it can be neither read nor made. The text has the remedy.
    """
    now = now or datetime.now(UTC)
    folder = data_dir / FOLDER
    try:
        make_private_folder(folder)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = _read(folder / FILE)
            if kept is not None and kept.ends_at - now > RENEWED_BEFORE:
                _check_begin(kept, folder / FILE, now)
                return kept
            made = _made(now)
            _write(folder / FILE, made.key + made.chain)
            return made
    except OSError as error:
        raise ProvenanceUnusableError(
            f"{folder} cannot be used: {error.strerror}. It is to keep the key that signs videos: "
            "correct its permissions, or set MOCHI_C2PA_CERT and MOCHI_C2PA_KEY."
        ) from None


def own_anchor(data_dir: Path) -> bytes | None:
    """The authority's certificate of `own_identity` as PEM; None if there is none yet.

    Raises:
        ProvenanceUnusableError: it cannot be read.
    """
    try:
        kept = _read(data_dir / FOLDER / FILE)
    except OSError as error:
        raise ProvenanceUnusableError(
            f"{data_dir / FOLDER / FILE} cannot be read: {error.strerror}. Run this as the user of "
            "the server, or name certificates to trust with --trust."
        ) from None
    return kept.anchor if kept else None


def _read(path: Path) -> Identity | None:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        kept = _identity(load_pem_private_key(pem, None), x509.load_pem_x509_certificates(pem))
        kept.certificates[0].verify_directly_issued_by(kept.certificates[-1])
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ProvenanceUnusableError(
            f"{path} is damaged ({error}). Restore it, or remove it: the next start makes another, "
            "and videos signed with this one are no longer known as this server's."
        ) from None
    return kept


def _write(path: Path, pem: bytes) -> None:
    draft = path.with_name(f"{path.name}.part")
    draft.unlink(missing_ok=True)  # of a process that died here
    with open(draft, "xb", opener=partial(os.open, mode=0o600)) as file:
        file.write(pem)
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def _made(now: datetime) -> Identity:
    """A new key with a certificate, and the certificate of its authority."""
    authority_key, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    # By a random number and not by the host's name, which videos would carry into the world.
    number = secrets.token_hex(4)
    authority_name = _name(f"mochi-server {number} root")
    begin, end = now - SKEW, now + LIFE
    authority = (
        x509.CertificateBuilder(
            authority_name, authority_name, authority_key.public_key(),
            x509.random_serial_number(), begin, end,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_identifier(authority_key), critical=False)
        .sign(authority_key, None)
    )  # fmt: skip
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        x509.CertificateBuilder(
            authority_name, _name(f"mochi-server {number}"), key.public_key(),
            x509.random_serial_number(), begin, end,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(PURPOSE, critical=False)
        .add_extension(_identifier(key), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, None)
    )  # fmt: skip
    return _identity(key, [certificate, authority])


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mochi-server"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _identifier(key: Ed25519PrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _check_begin(identity: Identity, path: Path, now: datetime) -> None:
    """It would sign nothing before. To replace it because of a wrong clock would lose it."""
    begin = max(each.not_valid_before_utc for each in identity.certificates)
    if now < begin:
        raise ProvenanceUnusableError(
            f"{path} is valid from {begin:{_TIME}} on, and this machine's clock says "
            f"{now:{_TIME}}. Correct the clock. If it was wrong when the file was made, remove the "
            "file: the next start makes another."
        )


def _identity(key: PrivateKeyTypes, certificates: Sequence[x509.Certificate]) -> Identity:
    """Raises ValueError for a key of another kind, or of another certificate."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificates[0].public_key().public_bytes(*form):
        raise ValueError("it is not the key of the first certificate")
    return Identity(_algorithm(key), pem, tuple(certificates))


def _algorithm(key: PrivateKeyTypes) -> str:
    match key:
        case Ed25519PrivateKey():
            return "ed25519"
        case RSAPrivateKey():
            return "ps256"
        case EllipticCurvePrivateKey() if key.curve.name in CURVES:
            return CURVES[key.curve.name]
        case _:
            raise ValueError("C2PA signs with keys of Ed25519, RSA, P-256, P-384 and P-521 only")


def _unreadable(name: str, path: str, error: Exception) -> ProvenanceUnusableError:
    """The texts of the library that reads it speak to programmers."""
    why = error.strerror if isinstance(error, OSError) else ""
    return _unusable(name, path, why or "it holds none that can be read")


def _unusable(name: str, path: str, why: str) -> ProvenanceUnusableError:
    what = {
        "CERT": "a certificate as PEM, those that lead to its root after it",
        "KEY": "the private key of the first certificate as PEM, without a passphrase",
    }[name]
    return ProvenanceUnusableError(
        f"MOCHI_C2PA_{name}: {path} cannot be used: {why}. Expected {what}."
    )
