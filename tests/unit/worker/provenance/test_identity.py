"""The key and certificates that sign videos: made once and kept private, or given and checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.unit.worker.support.certificates import issued
from worker.errors import ProvenanceUnusableError
from worker.provenance.identity import LIFE, given_identity, own_anchor, own_identity

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def files_below(folder: Path) -> dict[str, int]:
    """Each file's permissions by its name."""
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_the_first_start_makes_it_and_later_ones_find_it(tmp_path: Path) -> None:
    assert own_anchor(tmp_path) is None
    first = own_identity(tmp_path, NOW)
    assert own_identity(tmp_path, NOW + timedelta(days=1)) == first
    assert own_anchor(tmp_path) == first.anchor


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = os.umask(0)
    try:
        own_identity(data_dir, NOW)
    finally:
        os.umask(before)
    assert (data_dir / "provenance").stat().st_mode & 0o777 == 0o700
    assert files_below(data_dir / "provenance")["identity.pem"] == 0o600


def test_nothing_in_it_tells_which_machine_made_it(tmp_path: Path) -> None:
    chain = own_identity(tmp_path, NOW).certificates
    names = " ".join(each.subject.rfc4514_string() for each in chain)
    assert os.uname().nodename not in names
    assert names.count("O=mochi-server") == 2


def test_two_servers_are_told_apart(tmp_path: Path) -> None:
    ours, theirs = (own_identity(tmp_path / name, NOW) for name in ("ours", "theirs"))
    assert ours.certificates[0].subject != theirs.certificates[0].subject


def test_processes_that_start_together_sign_with_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from worker.provenance.identity import own_identity;"
        "sys.stdout.buffer.write(own_identity(Path(sys.argv[1])).chain)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    chains = {process.communicate(timeout=60)[0] for process in started}
    assert chains == {own_identity(tmp_path).chain}
    assert all(process.returncode == 0 for process in started)


def test_what_a_process_that_was_killed_left_is_no_hindrance(tmp_path: Path) -> None:
    own_identity(tmp_path, NOW)
    folder = tmp_path / "provenance"
    (folder / "identity.pem").rename(folder / "identity.pem.part")
    own_identity(tmp_path, NOW)
    assert files_below(folder).keys() == {"identity.pem", "lock"}


def test_it_is_made_anew_in_the_last_year_of_its_life(tmp_path: Path) -> None:
    first = own_identity(tmp_path, NOW)
    assert own_identity(tmp_path, NOW + LIFE - timedelta(days=366)) == first
    assert own_identity(tmp_path, NOW + LIFE - timedelta(days=364)) != first


def test_one_that_is_not_valid_yet_is_kept_and_the_clock_is_named(tmp_path: Path) -> None:
    """It would sign nothing, and the clock may be wrong now, or have been when it was made."""
    first = own_identity(tmp_path, NOW)
    with pytest.raises(ProvenanceUnusableError) as error:
        own_identity(tmp_path, NOW - timedelta(days=2))
    assert "is valid from 2026-11-30T00:00:00Z on" in str(error.value)
    assert "this machine's clock says 2026-11-29T00:00:00Z. Correct the clock" in str(error.value)
    assert own_identity(tmp_path, NOW) == first


def test_one_that_cannot_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "provenance" / "identity.pem").mkdir(parents=True)
    with pytest.raises(ProvenanceUnusableError, match=r"cannot be read: .*--trust"):
        own_anchor(tmp_path)


def test_a_damaged_one_is_not_replaced_in_silence(tmp_path: Path) -> None:
    own_identity(tmp_path, NOW)
    path = tmp_path / "provenance" / "identity.pem"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ProvenanceUnusableError, match=r"is damaged .* remove it: the next start"):
        own_identity(tmp_path, NOW)


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "provenance").touch()
    with pytest.raises(ProvenanceUnusableError, match=r"provenance cannot be used: .*MOCHI_C2PA"):
        own_identity(tmp_path, NOW)


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "es256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
    ],
)
def test_an_operators_own_is_taken(
    tmp_path: Path, make: Callable[[], CertificateIssuerPrivateKeyTypes], algorithm: str
) -> None:
    cert, key = issued(tmp_path, make())
    found = given_identity(str(cert), str(key))
    assert found.algorithm == algorithm
    assert found.chain == cert.read_bytes()
    assert cert.read_bytes().endswith(found.anchor)


def test_a_file_that_cannot_be_used_is_named_with_its_variable(tmp_path: Path) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    other = tmp_path / "other.pem"

    def refusal(cert: Path, key: Path) -> str:
        with pytest.raises(ProvenanceUnusableError) as error:
            given_identity(str(cert), str(key))
        return str(error.value)

    assert refusal(tmp_path / "none.pem", key).startswith(
        f"MOCHI_C2PA_CERT: {tmp_path}/none.pem cannot be used: No such file or directory. Expected "
    )
    none = "cannot be used: it holds none that can be read. Expected "
    assert refusal(key, key).startswith(f"MOCHI_C2PA_CERT: {key} {none}a certificate as PEM")
    assert refusal(cert, tmp_path / "none.pem").startswith("MOCHI_C2PA_KEY: ")
    assert refusal(cert, cert).startswith(f"MOCHI_C2PA_KEY: {cert} {none}the private key")
    private = ec.generate_private_key(ec.SECP256R1())
    for form in (NoEncryption(), BestAvailableEncryption(b"12345")):
        other.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form))
        assert refusal(cert, other).startswith(f"MOCHI_C2PA_KEY: {other} cannot be used: ")


def test_a_key_that_c2pa_does_not_know_is_refused(tmp_path: Path) -> None:
    cert, key = issued(tmp_path, ed448.Ed448PrivateKey.generate())
    with pytest.raises(ProvenanceUnusableError, match="with keys of Ed25519, RSA, P-256"):
        given_identity(str(cert), str(key))
