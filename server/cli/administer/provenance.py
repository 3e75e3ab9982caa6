"""`mochi-server provenance`: verify marks of AI in videos, and print the certificate to trust."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import INSTALL
from server.cli.options import AsJson, exit_on_error, read_settings, settings_options
from server.cli.output import print_json
from server.errors import CommandError, visible
from server.settings import ServerSettings

if TYPE_CHECKING:
    from worker.provenance.verification import Finding

provenance = typer.Typer(
    help="Verify marks of AI in videos, and print the certificate to trust.", no_args_is_help=True
)

UNCHANGED = "pictures and texts unchanged"
"""All that the signature covers; not each byte of an MP4."""
UNTRUSTED = (
    "Anybody can make such a certificate. If its owner gave you its root, name that file with "
    "--trust; `mochi-server provenance certificate` prints a server's own."
)


class NoLibraryError(CommandError):
    """The extra `provenance` is not installed."""


class NoCertificateError(CommandError):
    """There is no certificate to print."""


@provenance.command()
@settings_options("data_dir")
def verify(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="An MP4, a GIF or a JPEG.")
    ],
    trust: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="PEM",
            help="Certificates to trust, instead of this server's.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify that a video's pictures and texts are as they were signed, and by whom.

    It needs no network. The exit status is 1, with the reason, for a video that was changed, is not
    signed, or is signed by a certificate that is not trusted here.

    Example: `mochi-server provenance verify panda.mp4`

    One of another server: `mochi-server provenance verify panda.mp4 --trust root.pem`
    """
    settings = read_settings()
    with exit_on_error(os.EX_CONFIG):
        with _library():
            from worker.provenance import verification  # noqa: PLC0415 (an extra)
        anchor = _trusted(trust) if trust else _own_anchor(settings)
        if not file.is_file():
            raise typer.BadParameter(
                f"'{file}' is not a regular file. A pipe cannot be verified: save the video to a "
                "file, and verify that.",
                param_hint="'file'",
            )
        with _readable(file, "'file'"), file.open("rb") as stream:
            found = verification.verify(stream, anchor)
    if as_json:
        print_json({"file": str(file), **asdict(found), "ai_made": found.is_ai_made})
    else:
        lines = _lines(file, found, str(trust or settings.c2pa_cert))
        typer.echo("\n".join(map(visible, lines)))
    if found.verdict is not verification.Verdict.TRUSTED:
        raise typer.Exit(1)


@provenance.command()
@settings_options("data_dir")
def certificate() -> None:
    """Print the certificate that verifiers of this server's videos trust, and nothing else.

    It is no secret: hand it out, or publish it. With MOCHI_C2PA_CERT it is the last of that file.

    Example: `mochi-server provenance certificate > root.pem`
    """
    settings = read_settings()
    with exit_on_error(os.EX_CONFIG):
        anchor = _own_anchor(settings)
        if not anchor:
            raise NoCertificateError(
                f"There is no certificate in {settings.data_dir} yet: the first start of a worker "
                "makes it. If you meant another folder, choose it with --data-dir."
            )
    typer.echo(anchor.decode(), nl=False)


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise NoLibraryError(
            f"A library is not installed ({error}). In a clone of the project, type: "
            f"{INSTALL} '.[provenance]'"
        ) from None
    except (OSError, RuntimeError) as error:  # it is there, and not for this machine
        raise NoLibraryError(f"c2pa-python does not load here: {error}.") from None


@contextmanager
def _readable(file: Path, argument: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"'{file}' cannot be read: {error.strerror}."
        raise typer.BadParameter(text, param_hint=argument) from None


def _own_anchor(settings: ServerSettings) -> bytes:
    """What verifiers of this server's videos trust, as PEM; empty if it has not signed any yet."""
    with _library():
        from worker.provenance.identity import (  # noqa: PLC0415 (an extra)
            given_identity,
            own_anchor,
        )
    if settings.c2pa_cert:
        return given_identity(settings.c2pa_cert, settings.c2pa_key).anchor
    return own_anchor(settings.data_dir) or b""


def _trusted(certificates: Path) -> bytes:
    with _library():
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 (an extra)
            Encoding,
        )
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 (likewise)
    try:
        with _readable(certificates, "'--trust'"):
            found = load_pem_x509_certificates(certificates.read_bytes())
    except ValueError:  # its text speaks to programmers
        raise typer.BadParameter(
            f"'{certificates}' holds no PEM certificate. Expected -----BEGIN CERTIFICATE----- and "
            "what follows it, as `mochi-server provenance certificate` prints.",
            param_hint="'--trust'",
        ) from None
    # Without the text around them, which may be in any encoding.
    return b"".join(each.public_bytes(Encoding.PEM) for each in found)


def _lines(file: Path, found: Finding, anchors: str) -> Iterator[str]:
    """For people: the verdict, then what the manifest says.

    `anchors` is the file of the certificates that were trusted; empty for the one that the server
    made, whose authority has signed no other.
    """
    if found.reason:
        yield f"{file}: {found.verdict}: {found.reason}."
    elif anchors:
        yield f"{file}: {UNCHANGED}, signed by a certificate that leads to one of {anchors}."
    else:
        yield f"{file}: {UNCHANGED}, signed by a certificate of this server."
    if found.verdict == "untrusted":
        yield UNTRUSTED
    if found.verdict not in {"trusted", "untrusted"}:
        return  # what a changed manifest says is worth nothing
    source = "AI made it (trainedAlgorithmicMedia)" if found.is_ai_made else found.source
    said = {
        "source": source,
        "model": found.model,
        "software": found.software,
        "prompt": found.prompt,
        "signer": found.signer,
        "signed at": found.signed_at,
    }
    for name, text in said.items():
        if text:
            yield f"  {name}: {text}"
