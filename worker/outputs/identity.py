"""What the files of a worker depend on besides the request.

The result cache gives a request the video of an earlier run only while a worker with the same
identity would make it again.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from models.engine import Engine
from models.moderation.settings import ModerationSettings
from models.version import this_build
from models.video.encoding import encoder, encoder_version

FILE_LIBRARIES = ("pillow", "c2pa-python")
"""Distributions that write parts of the files: stills, and marks."""


def identity_of(engine: Engine, settings: ModerationSettings, marks: str) -> str:
    """A SHA-256 as 64 hexadecimal digits.

    The folder of a classifier counts by its name, a list of terms by its content. The certificate
    that signs does not count.

    Args:
        engine: with its weights loaded.
        settings: of moderation: a video that was not judged, or not so strictly, is another one.
        marks: how files are marked as made by AI.

    Raises:
        EngineUnavailableError: there is no ffmpeg.
        OSError: the list of terms cannot be read.
    """
    traits = engine.traits
    parts = [
        str(this_build()),
        repr(traits),
        repr(sorted(traits.loras.items())),
        engine.origin,
        Path(encoder()).name,
        encoder_version(),
        *map(_version_of, FILE_LIBRARIES),
        *(f"{name}={getattr(settings, name)}" for name in ModerationSettings.__annotations__),
        marks,
    ]
    if settings.moderation_terms:
        parts.append(hashlib.sha256(Path(settings.moderation_terms).read_bytes()).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _version_of(distribution: str) -> str:
    """Empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
