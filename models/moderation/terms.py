"""Blocks prompts that contain a word or phrase of a file.

    # A comment. Terms below [a category] belong to it.
    [violence]
    behead
    cut his throat

Case, accents, forms of the same character, invisible characters and punctuation make no difference.
Only whole words match: `ass` does not match `assassin`, nor `bomb` `bombs`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import EngineUnavailableError

UNNAMED = "term list"
"""The category of terms above the first category."""
MAX_CATEGORY_LENGTH = 60
"""Clients read it."""

_CATEGORY = re.compile(r"\[(.*)\]")
# Thai to Burmese, Khmer, Japanese, Chinese put no spaces between words: each character is a word.
_SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\U00020000-\U0003ffff]"
)
# With the category Cf, all of Unicode's Default_Ignorable_Code_Point.
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters that are no space
    r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    r"\U000e0000-\U000e0fff"
)
# Marks that belong to no script. Those of one, such as the vowels of Hindi, make another word.
_ACCENTS = r"\u0300-\u036f\u0483-\u0487\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_IGNORED = re.compile(f"[{_INVISIBLE}{_ACCENTS}]")
_Words = tuple[str, ...]


@dataclass(frozen=True)
class TermList:
    """Finds terms in prompts, in a time that does not depend on the number of terms.

    Attributes:
        categories: of each term, by its words.
        lengths: numbers of words in a term, ascending.
    """

    categories: dict[_Words, str]
    lengths: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> TermList:
        """Load a file.

        Raises:
            EngineUnavailableError: the file cannot be read, or a line has no meaning; the text
                names the line.
        """
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise _refusal(path, f"cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise _refusal(path, "is not in UTF-8") from None
        categories = dict(_terms(path, lines))
        if not categories:
            raise _refusal(path, "has no terms, one to a line")
        return cls(categories, tuple(sorted({len(words) for words in categories})))

    def blocks(self, prompt: str) -> str | None:
        """The category of the first term in a prompt, or None."""
        words = _words(prompt)
        for start in range(len(words)):
            for length in self.lengths:
                category = self.categories.get(words[start : start + length])
                if category is not None:
                    return category
        return None


def _terms(path: Path, lines: list[str]) -> Iterator[tuple[_Words, str]]:
    category = UNNAMED
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if heading := _CATEGORY.fullmatch(line):
            category = heading[1].strip()
            if not category.isprintable() or not 0 < len(category) <= MAX_CATEGORY_LENGTH:
                raise _refusal(
                    path, f"line {number}: a category has 1 to {MAX_CATEGORY_LENGTH} letters"
                )
        elif words := _words(line):
            yield words, category
        else:
            raise _refusal(path, f"line {number} has no letter or digit, and would match nothing")


def _words(text: str) -> _Words:
    """The words of a text, in the form in which they are compared."""
    # Twice, as a single character like a bold K or a ligature may have a case only once decomposed.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    plain = "".join(map(_plain, folded))
    return tuple(_SPACELESS.sub(r" \g<0> ", plain).split())


def _plain(character: str) -> str:
    """Drop accents and invisible characters, and replace characters outside of words by spaces."""
    category = unicodedata.category(character)
    if category in {"Cf", "Me"} or _IGNORED.match(character):
        return ""
    return character if category[0] in "LMN" else " "


def _refusal(path: Path, why: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"MOCHI_MODERATION_TERMS={path}: {why}. Correct the file, or unset the variable."
    )
