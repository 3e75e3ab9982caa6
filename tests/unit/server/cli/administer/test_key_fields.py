"""What is printed of keys and of the audit log, also of entries that other programs wrote."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from server.cli.administer.key_fields import print_entries, print_key, print_keys
from server.keys.audit import Entry
from server.keys.record import Change, Key

COMMAND = "\x1b]0;title\x07\n\x9b2J\u202e"
WRITTEN = r"\x1b]0;title\x07\n\x9b2J\u202e"


def test_the_log_shows_what_cannot_be_printed_written_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = Change("name", COMMAND, COMMAND)
    print_entries([Entry("set" + COMMAND, "to" + COMMAND, (change,), by="by" + COMMAND)])
    printed = capsys.readouterr().out
    assert COMMAND not in printed
    for text in ("set", "to", "by", "name: ", "→ "):
        assert text + WRITTEN in printed
    assert len(printed.splitlines()) == 2


def test_a_key_shows_what_cannot_be_printed_written_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = datetime(2027, 1, 31, tzinfo=UTC)
    key = Key.model_construct(key_id="0" * 32, name=COMMAND, models=(COMMAND,), created_at=now)
    print_keys([key], with_ids=True)
    print_key(key, [])
    printed = capsys.readouterr().out
    assert printed.count(WRITTEN) == 4
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
