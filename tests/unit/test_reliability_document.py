"""`docs/reliability.md` describes the scripts that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "worker" / "lua").glob("*.lua")}


def test_every_script_and_every_field_of_the_record_is_described() -> None:
    protocol = DOCUMENT.partition("## Who writes what")[2].partition("\n**")[0]
    assert set(SCRIPTS) - {"common"} <= set(re.findall(r"`(\w+)`", protocol))
    written = {
        field
        for script in SCRIPTS.values()
        for call in re.findall(r"'(?:HSET|HINCRBY)', keys\.record, ([^)]*)", script)
        for field in re.findall(r"'([a-z_]+)'", call)
    }
    assert {"status", "run", "cancelled", "idempotency_key"} <= written
    assert written <= set(re.findall(r"`([a-z_]+)`", protocol))
