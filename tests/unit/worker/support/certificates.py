"""Certificates as an operator buys or makes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


def issued(
    folder: Path,
    key: CertificateIssuerPrivateKeyTypes,
    *,
    usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
    days: int = 30,
) -> tuple[Path, Path]:
    """The files of a certificate with its root, and of its key.

    Args:
        folder: of the files.
        key: to certify.
        usage: extended key usages.
        days: until it ends; it began a hundred days ago.
    """
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Example Root", root_key, "Example Root", root_key, days=days, usage=())
    leaf = _certificate("Example Films", key, "Example Root", root_key, days=days, usage=usage)
    cert_path, key_path = folder / "chain.pem", folder / "key.pem"
    cert_path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, root)))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_path.write_bytes(pem)
    return cert_path, key_path


def _certificate(
    name: str,
    key: CertificateIssuerPrivateKeyTypes,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    usage: Sequence[x509.ObjectIdentifier],
) -> x509.Certificate:
    is_root = name == issuer
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        _name(issuer), _name(name), key.public_key(), x509.random_serial_number(), now - 100 * DAY,
        now + days * DAY,
    )  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(is_root, None), critical=True)
    builder = builder.add_extension(
        x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False),
        critical=True,
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )
