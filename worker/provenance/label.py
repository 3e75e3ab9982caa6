"""IPTC's term for media that a model made, as plain metadata of an MP4.

A reader needs neither C2PA nor a certificate for it. Anybody can write or remove it.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The term, of https://cv.iptc.org/newscodes/digitalsourcetype/."""

GENERATOR = "mochi-server"
"""The software that makes manifests, and the name of what it adds to the fields of C2PA."""

XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
"""The box at the top of an MP4 that holds XMP: XMP specification part 3, 1.1.4 (MPEG-4)."""

_XMP = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{AI_MADE}"/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def description(model: str) -> str:
    """What players, ffprobe and exiftool show. It survives ffmpeg, which drops XMP."""
    return f"Made by AI ({model}). {AI_MADE}"


def append_xmp(video: Path) -> None:
    """Add the term to an MP4 as XMP, at the end, where no offset changes. Raises OSError."""
    payload = XMP_BOX.bytes + _XMP
    with video.open("ab") as file:
        file.write((8 + len(payload)).to_bytes(4) + b"uuid" + payload)
