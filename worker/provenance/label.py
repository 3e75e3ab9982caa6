"""IPTC's term for media that a model made, as plain metadata of a file.

A reader needs neither C2PA nor a certificate for it. Anybody can write or remove it.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The term, of https://cv.iptc.org/newscodes/digitalsourcetype/."""

GENERATOR = "mochi-server"
"""The software that makes manifests, and the name of what it adds to the fields of C2PA."""

XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
"""The box at the top of an MP4 that holds XMP: XMP specification part 3, 1.1.4 (MPEG-4)."""

_GIF_TRAILER = b"\x3b"
_GIF_MAGIC = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
"""Behind XMP: who knows none takes its texts for lengths, and is led from here to the end."""
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


def append_xmp(video: Path, media_type: str = "video/mp4") -> None:
    """Add the term to a video as XMP, at the end. A WebM has no place for it; see `description`.

    Raises OSError. The places are those of the XMP specification, part 3, 1.1.2 and 1.1.4.
    """
    match media_type:
        case "video/mp4":  # where no offset changes
            payload = XMP_BOX.bytes + _XMP
            with video.open("ab") as file:
                file.write((8 + len(payload)).to_bytes(4) + b"uuid" + payload)
        case "image/gif":
            with video.open("r+b") as file:
                file.seek(-len(_GIF_TRAILER), os.SEEK_END)
                file.write(b"\x21\xff\x0bXMP DataXMP" + _XMP + _GIF_MAGIC + _GIF_TRAILER)


def jpeg_with_term(jpeg: bytes) -> bytes:
    """The same picture with the term as XMP, after the header, which must be first.

    Source: the XMP specification, part 3, 1.1.3.
    """
    payload = b"http://ns.adobe.com/xap/1.0/\x00" + _XMP
    end = 4 + int.from_bytes(jpeg[4:6])
    return jpeg[:end] + b"\xff\xe1" + (2 + len(payload)).to_bytes(2) + payload + jpeg[end:]
