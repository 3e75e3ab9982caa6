"""`docs/operate/reliability.md` describes the scripts and the faults that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "operate" / "reliability.md").read_text()
FAULTS = set(range(1, 31))
LUA = [*(ROOT / "worker" / "store" / "lua").glob("*/*.lua")]
SCRIPTS = {path.stem for path in LUA if path.parent.name != "common"}


def test_every_script_and_every_field_of_the_record_is_described() -> None:
    protocol = DOCUMENT.partition("## Who writes what")[2].partition("\n**")[0]
    assert set(re.findall(r"`(\w+)`", protocol)) >= SCRIPTS
    written = {
        field
        for path in LUA
        for call in re.findall(r"'(?:HSET|HINCRBY)', keys\.record, ([^)]*)", path.read_text())
        for field in re.findall(r"'([a-z_]+)'", call)
    }
    assert {"status", "run", "cancelled", "idempotency_key"} <= written
    assert written <= set(re.findall(r"`([a-z_]+)`", protocol))


def test_every_fault_has_a_test_and_a_row() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "faults").rglob("test_*.py"))
    tested = {int(number) for number in re.findall(r"def test_f(\d\d)_", tests)}
    assert tested == FAULTS
    assert {int(number) for number in re.findall(r"^\| F(\d+) \|", DOCUMENT, re.M)} == FAULTS
