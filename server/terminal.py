"""Text that others wrote, as it may be shown on a terminal."""

from __future__ import annotations


def visible(text: str) -> str:
    """The same with what cannot be printed written out, as Python does: it could be a command."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
