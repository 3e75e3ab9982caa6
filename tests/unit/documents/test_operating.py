"""`docs/operate/operating.md` has what `/metrics` shows. A failure shows the right table."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Metric

from models.engine import DeviceUse, Traits
from server.api.metrics import Scrape
from server.transport.traffic import Traffic
from worker.store.presence import LiveWorker
from worker.store.reports.statistics import Survey

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "operate" / "operating.md"


def _families() -> list[Metric]:
    """All there can be."""
    traits = Traits("some weights", "a card", "bf16", "80gb", ("fp8",))
    sums = ["wait 10", "1", "run 10", "1", "stage step 10", "1", "stage video 10", "1"]
    survey = Survey.of(
        [
            *("queues", [["mochi-1", 0, 0, 0]], "due_webhooks", 0),
            *("workers", [str(LiveWorker("ann", traits))], "sums", sums),
        ]
    )
    traffic = Traffic()
    traffic.note({"type": "http", "method": "GET"}, 200, 0.0)
    scrape = Scrape("1", traffic, survey, {"ann": [DeviceUse("cuda:0", 4, 3, 0.5, 1, 2)]})
    families = [family for family in scrape.collect() if family.name.startswith("mochi")]
    assert all(family.samples for family in families)
    return families


def _shown(family: Metric) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return f"`{family.name}{suffix}`"


def _row(family: Metric) -> str:
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    kind = "gauge" if family.type == "info" else family.type
    cells = (
        _shown(family),
        kind,
        ", ".join(f"`{label}`" for label in labels),
        family.documentation,
    )
    return f"| {' | '.join(cells)} |"


def test_the_document_has_the_table_that_the_code_gives() -> None:
    rows = "\n".join(map(_row, _families()))
    assert rows in DOCUMENT.read_text(), f"docs/operate/operating.md should have:\n{rows}"


def test_the_document_has_every_alert() -> None:
    alerts = re.findall(
        r"alert: (\w+)", (ROOT / "docker" / "prometheus" / "rules.yaml").read_text()
    )
    assert alerts == re.findall(r"^\| `(Mochi\w+)` \|", DOCUMENT.read_text(), re.MULTILINE) != []


def test_every_event_that_the_document_names_is_logged() -> None:
    logs = DOCUMENT.read_text().partition("## Logs")[2].partition("## Traces")[0]
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", logs))
    sources = [
        path.read_text()
        for package in ("server", "worker", "models")
        for path in (ROOT / package).rglob("*.py")
    ]
    logged = {event for text in sources for event in re.findall(r'"([a-z_]+\.[a-z_]+)"', text)}
    assert len(named) > 20
    assert named <= logged
