"""How a worker marks its videos as made by AI, by its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from models.engine import Clip
from models.errors import INSTALL
from models.request.params import FORMATS, STILL_TYPE
from worker.errors import ProvenanceUnusableError, StorageError
from worker.provenance.label import append_xmp, description, jpeg_with_term
from worker.settings import WorkerSettings

MP4, WEBM = FORMATS["mp4"], FORMATS["webm"]
WARNED_BEFORE = timedelta(days=30)
"""The end of a certificate."""

if TYPE_CHECKING:
    from worker.provenance.signing import Signer

_log = structlog.get_logger()


@dataclass(frozen=True)
class Marker:
    """Marks the videos of one worker.

    Attributes:
        signer: adds a C2PA manifest; None for IPTC's term alone.
    """

    signer: Signer | None = None

    def __str__(self) -> str:
        return "c2pa" if self.signer else "metadata"

    def described(self, clip: Clip, model: str) -> Clip:
        """The clip whose file will say in words that a model made it."""
        return replace(clip, description=description(model))

    def mark(self, video: Path, model: str, prompt: str, media_type: str = MP4) -> None:
        """Mark a video that is not published yet, in place. An error leaves no file.

        Raises:
            StorageError: it cannot be marked.
        """
        try:
            append_xmp(video, media_type)
            if self.signer is not None and media_type != WEBM:  # C2PA has no place in a WebM
                self.signer.sign(video, model, prompt, media_type)
        except OSError as error:
            video.unlink(missing_ok=True)
            raise StorageError(f"The video cannot be marked: {error.strerror}") from error
        except BaseException:
            video.unlink(missing_ok=True)
            raise

    def marked_still(self, jpeg: bytes, model: str, prompt: str) -> bytes:
        """The same picture with the marks of its video.

        Raises:
            StorageError: it cannot be marked.
        """
        jpeg = jpeg_with_term(jpeg)
        if self.signer is None:
            return jpeg
        return self.signer.signed(jpeg, model, prompt, STILL_TYPE)


def open_marker(settings: WorkerSettings) -> Marker | None:
    """The marker of a worker; None where marking is off.

    Raises:
        ProvenanceUnusableError: videos cannot be marked as the settings ask.
    """
    if settings.provenance == "off":
        return None
    if settings.provenance == "metadata":
        return Marker()
    try:
        from worker.provenance.identity import (  # noqa: PLC0415 (an extra)
            given_identity,
            own_identity,
        )
        from worker.provenance.signing import Signer  # noqa: PLC0415 (likewise)
    except ImportError as error:
        if settings.provenance == "auto" and not settings.c2pa_cert:
            return Marker()
        raise ProvenanceUnusableError(
            f"Videos cannot be signed, as a library is not installed ({error}). In a clone of the "
            f"project, type: {INSTALL} '.[provenance]'. Or set MOCHI_PROVENANCE=metadata."
        ) from None
    except (OSError, RuntimeError) as error:  # it is there, and not for this machine
        raise ProvenanceUnusableError(
            f"Videos cannot be signed, as c2pa-python does not load here: {error}. Repair it, or "
            "set MOCHI_PROVENANCE=metadata."
        ) from None
    if settings.c2pa_cert:
        identity = given_identity(settings.c2pa_cert, settings.c2pa_key)
        if identity.ends_at - datetime.now(UTC) < WARNED_BEFORE:
            _log.warning("provenance.ends_soon", ends_at=identity.ends_at.isoformat())
    else:
        identity = own_identity(settings.data_dir)
    return Marker(Signer(identity, keeps_prompt=settings.c2pa_prompt))
