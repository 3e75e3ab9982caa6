"""What the documents name exists: commands, options, settings, files, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from server.cli.main import app
from server.settings import ServerSettings
from tests.bench.__main__ import app as bench
from tests.chaos.__main__ import app as chaos

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = {
    ("mochi-server",): app,
    ("python", "-m", "tests.bench"): bench,
    ("python", "-m", "tests.chaos"): chaos,
    ("docker", "compose", "run", "--rm", "gateway"): app,
    ("docker", "compose", "run", "--rm", "worker"): app,
}
PICTURES = ROOT / "docs" / "pictures"
MADE_BY_OPERATORS = {"docker/prometheus/key"}
CLIENT_VARIABLES = {"MOCHI_URL", "MOCHI_API_KEY"}
WIDTH = 100
README_LINES = 130

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def _commands(text: str) -> Iterator[list[str]]:
    """Each call of one of the programs, in a block or in a line, without its program."""
    blocks = re.findall(r"```(?:console|bash)\n(.*?)```", text, re.DOTALL)
    typed = [
        line.removeprefix("$ ")
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in typed + spans:
        if not any(program[0] in line for program in PROGRAMS):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>()")
        lexer.wordchars += "$…!=@:,[]{}'%+?"
        words = list(lexer)
        for start in range(len(words)):
            for program in PROGRAMS:
                if tuple(words[start : start + len(program)]) == program:
                    rest = words[start + len(program) :]
                    yield [
                        " ".join(program),
                        *takewhile(lambda word: word[0] not in "|;&<>()", rest),
                    ]


def _exists(path: Path) -> bool:
    """An sdist has no pictures."""
    return path.exists() or (path.is_relative_to(PICTURES) and not PICTURES.exists())


def _is_argument(word: str) -> bool:
    return word[0] not in "|;&<>()"


def _complaint(words: list[str]) -> str:
    """Why the command cannot be typed; empty if it can."""
    app = PROGRAMS[tuple(words[0].split())]
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    context = command.make_context(words[0], [], resilient_parsing=True)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name == "…":
            return ""
        if name not in command.commands:
            return f"no command {name}"
        _, command, _ = command.resolve_command(context, [name])
        context = type(context)(command, info_name=name, parent=context)
    options = {
        option for param in command.params for option in (*param.opts, *param.secondary_opts)
    }
    own = takewhile(lambda word: word != "--", rest)  # what follows is another program's
    given = {word.partition("=")[0] for word in own if word.startswith("-") and len(word) > 1}
    return ", ".join(sorted(given - options - {"--help"}))


@every_document
def test_every_command_and_option_exists(document: Path) -> None:
    complaints = {
        " ".join(words): complaint
        for words in _commands(document.read_text())
        if (complaint := _complaint(words))
    }
    assert complaints == {}


def test_commands_are_found_and_judged() -> None:
    text = "```console\n$ X=1 mochi-server up --mock | cat\n$ mochi-server keys nonesuch\n```\n"
    text += "`mochi-server usage --nonesuch 3` `mochi-server wrap --url u -- ls --all`"
    judged = [(words[1:], _complaint(words)) for words in _commands(text)]
    assert judged == [
        (["up", "--mock"], ""),
        (["keys", "nonesuch"], "no command nonesuch"),
        (["usage", "--nonesuch", "3"], "--nonesuch"),
        (["wrap", "--url", "u", "--", "ls", "--all"], ""),
    ]
    commands = sum(len(list(_commands(path.read_text()))) for path in DOCUMENTS)
    assert commands > 50


@every_document
def test_every_setting_exists(document: Path) -> None:
    settings = {f"MOCHI_{name.upper()}" for name in ServerSettings.model_fields}
    named = set(re.findall(r"\bMOCHI_\w+", document.read_text()))
    assert named <= settings | CLIENT_VARIABLES


@every_document
def test_every_file_and_folder_exists(document: Path) -> None:
    folders = r"(?:server|worker|models|tests|scripts|docker|docs|\.ci)"
    named = set(re.findall(rf"(?<![\w/.-]){folders}/[\w./-]*[\w/]", document.read_text()))
    missing = {name for name in named if not _exists(ROOT / name)}
    assert missing - MADE_BY_OPERATORS == set()


@every_document
def test_every_link_leads_somewhere(document: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not _exists(target) or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert dead == []


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_prose_wraps_at_100_columns(document: Path) -> None:
    is_code = False
    wide = []
    for line in document.read_text().splitlines():
        is_code ^= line.startswith("```")
        if len(line) > WIDTH and not is_code and not line.startswith("|"):
            wide.append(line)
    assert wide == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
