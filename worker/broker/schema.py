"""The schema: the number of the format of what gateways and workers keep in the broker.

Every script compares it (`lua/common/base.lua`), so no process of another format reads or writes a
record, also when the broker is emptied, restored or upgraded while the process runs.
"""

from __future__ import annotations

from models.version import this_build

SCHEMA = 1
"""What this release writes. CONTRIBUTING.md says when to raise it."""
READS = frozenset({SCHEMA})
"""What it can share a broker with. A release that adds the next number before any release writes
it can run beside both."""
SCHEMA_KEY = "mochi:schema"
"""String in the broker: the number that its data have."""
ERROR_CODE = "MOCHISCHEMA"
"""First word of a script's refusal; the broker's number follows."""


def refusal(number: str, what: str = "The broker's data") -> str:
    """The sentences about data of a schema that this release does not read."""
    version, ours = this_build().version, " and ".join(map(str, sorted(READS)))
    return (
        f"{what} have schema {number}, and this release, mochi-server {version}, reads schema "
        f"{ours}. Nothing was read or changed. Run a release that reads schema {number}: the table "
        "in docs/operate/upgrading.md names it."
    )
