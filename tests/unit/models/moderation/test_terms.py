"""The term list: what it finds, what it leaves alone, and which files it refuses."""

# ruff: noqa: RUF001 (letters that look like others)

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import EngineUnavailableError
from models.moderation.terms import TermList


def read(tmp_path: Path, text: str | bytes) -> TermList:
    path = tmp_path / "terms.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return TermList.read(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(EngineUnavailableError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"MOCHI_MODERATION_TERMS={tmp_path}/terms.txt: ")
    assert message.endswith(". Correct the file, or unset the variable.")
    return message


@pytest.mark.parametrize(
    "prompt",
    [
        "bomb",
        "A BOMB goes off",
        "a bomb.",
        "(bomb)",
        "time-bomb",
        "a_bomb_",
        "b\u200bo\u00admb",  # invisible characters
        "bömb",
        "bo\u0308mb",
        "\uff42\uff4f\uff4d\uff42",  # wide letters
        "𝐁𝐎𝐌𝐁",
        "🅱 ⓑⓞⓜⓑ",
        "\u202ebomb\u202c",
    ],
)
def test_a_term_is_found_in_whatever_form(tmp_path: Path, prompt: str) -> None:
    assert read(tmp_path, "bomb").blocks(prompt) == "term list"


@pytest.mark.parametrize(
    "character",
    [
        "\x00", "\x1b", "\x7f", "\x9f",  # control characters
        "\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u180f", "\u2065", "\u3164", "\ufe00",
        "\ufe0f", "\uffa0", "\ufff0", "\U000e0001", "\U000e0100", "\U000e01ef",  # invisible
        "\u0300", "\u0483", "\u0489", "\u1ab0", "\u1dc0", "\u20d0", "\u20d2", "\u20dd", "\ufe20",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_character_that_is_invisible_or_a_mark_hides_no_term(
    tmp_path: Path, character: str
) -> None:
    assert read(tmp_path, "bomb").blocks(f"a bo{character}mb") == "term list"
    assert read(tmp_path, f"b{character}omb").blocks("a bomb") == "term list"


@pytest.mark.parametrize(
    ("term", "prompt"),
    [
        ("ass", "an assassin passes a glass of bass"),
        ("cunt", "The market of Scunthorpe"),
        ("sex", "a view of Essex and Middlesex"),
        ("bomb", "bombs and bombers"),
        ("cut his throat", "cut his hair, and his throat is sore"),
        ("cut his throat", "his throat cut his"),
        ("bomb", ""),
    ],
)
def test_a_part_of_a_word_or_of_a_phrase_is_left_alone(
    tmp_path: Path, term: str, prompt: str
) -> None:
    assert read(tmp_path, term).blocks(prompt) is None


@pytest.mark.parametrize(
    "prompt", ["he cut  his\n throat", "CUT-HIS-THROAT", "cut his throat", "to cut his, throat"]
)
def test_a_phrase_is_found_whatever_is_between_its_words(tmp_path: Path, prompt: str) -> None:
    assert read(tmp_path, "cut his\tthroat").blocks(prompt) == "term list"


def test_scripts_without_spaces_and_with_marks_of_their_own_are_read(tmp_path: Path) -> None:
    terms = read(tmp_path, "炸弹\nбомба\nStraße\nबम\nばくだん")
    for prompt in ("他有一个炸弹在家", "одна БОМБА", "a STRASSE", "एक बम है", "そこにばくだんが"):
        assert terms.blocks(prompt) == "term list", prompt
    for prompt in ("炸鸡和弹簧", "бомбардир", "बमबारी", "बमी"):
        assert terms.blocks(prompt) is None, prompt


def test_a_category_is_of_the_terms_after_it_and_the_first_term_of_a_prompt_counts(
    tmp_path: Path,
) -> None:
    terms = read(
        tmp_path,
        "\ufeff# ours\r\nspoiler\r\n\r\n[Real violence]\r\n  bomb  \r\n# [no]\r\n"
        "[names]\r\nann o'hara",
    )
    assert terms.blocks("a spoiler") == "term list"
    assert terms.blocks("a bomb") == "Real violence"
    assert terms.blocks("Ann O'Hara with a bomb") == "names"
    assert terms.blocks("no names, no pond") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no terms"),
        ("# bomb\n[violence]\n", "has no terms"),
        ("bomb\n---", "line 2 has no letter or digit"),
        ("bomb\n\n[]", "line 3: a category"),
        (f"[{'x' * 61}]\nbomb", "line 1: a category"),
        (b"b\xf6mb", "is not in UTF-8"),
    ],
)
def test_a_file_that_means_nothing_is_refused_by_its_line(
    tmp_path: Path, text: str | bytes, why: str
) -> None:
    assert why in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="No such file"):
        TermList.read(tmp_path / "none.txt")
    with pytest.raises(EngineUnavailableError, match="Is a directory"):
        TermList.read(tmp_path)
