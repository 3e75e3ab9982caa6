"""Tables in the documents equal the code. A failure prints the right table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from models.moderation.settings import ModerationSettings
from models.request.loras import RULE as LORA_RULE
from models.request.params import RequestParams, shown
from models.settings import EngineSettings
from server.api.routes import event_stream, finish, generate, models, operations, requests
from server.api.routes import videos as videos_api
from server.api.routes.key import account, generations, webhooks
from server.api.schemas import FailedBody, Metrics, ResultBody, StatusBody, StillFile, Video
from server.api.submit.dry_run import DryRunBody
from server.errors import MEANING
from server.keys.backup import Line
from server.settings import ServerSettings
from worker.broker.schema import READS, SCHEMA
from worker.settings import WorkerSettings

DOCS = Path(__file__).parents[3] / "docs"
SUBMIT_FIELDS = {"request_id", "status", "status_url", "response_url"}
"""The document shows them in its example of a submit."""
LAYERS = (EngineSettings, ModerationSettings, WorkerSettings, ServerSettings)
ROUTERS = (
    generate.router,
    finish.router,
    requests.router,
    event_stream.router,
    videos_api.router,
    models.router,
    generations.router,
    webhooks.router,
    account.router,
    operations.router,
)


def _rows(*rows: tuple[object, ...]) -> list[str]:
    return ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _routes() -> list[str]:
    routes = [
        route
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    ]
    return _rows(
        *(
            (
                f"`{' '.join(sorted(route.methods or ()))} {route.path}`",
                (route.endpoint.__doc__ or "").partition("\n")[0],
            )
            for route in routes
        )
    )


def _errors() -> list[str]:
    return _rows(*((status, meaning) for status, meaning in sorted(MEANING.items())))


def _parameters() -> list[str]:
    fields = RequestParams.model_json_schema()["properties"]
    return _rows(
        *(
            (
                f"`{name}`",
                "required" if "default" not in field else _literal(field["default"]),
                _range(field),
                field["description"],
            )
            for name, field in fields.items()
        )
    )


def _literal(value: object) -> str:
    if value is None:
        return ""  # `none` would be read as a value
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`"


def _range(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return LORA_RULE
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "boolean":
        return "`true`, `false`"
    if "maxLength" in field:
        return f"at most {field['maxLength']:,} characters"
    return f"{shown(field['minimum'])} – {shown(field['maximum'])}"  # noqa: RUF001 (a range)


def _settings(layer: type[EngineSettings]) -> list[str]:
    """Of one layer of the settings: the next one has a table of its own."""
    return _rows(
        *(
            (f"`MOCHI_{name.upper()}`", _default(name, field.default), field.description)
            for name, field in layer.model_fields.items()
            if name in layer.__annotations__
        )
    )


def _default(name: str, default: object) -> str:
    if name == "data_dir":
        return "`~/.local/share/mochi-server`"
    shown = str(default).lower() if isinstance(default, bool) else default
    return "" if default == "" else f"`{shown}`"


@pytest.mark.parametrize("table", [_routes, _errors, _parameters])
def test_the_api_document_has_the_table_that_the_code_gives(table: Callable[[], list[str]]) -> None:
    rows = "\n".join(table())
    assert rows in (DOCS / "api.md").read_text(), f"docs/api.md should have:\n{rows}"


@pytest.mark.parametrize(
    "body", [StatusBody, FailedBody, ResultBody, Metrics, Video, StillFile, DryRunBody]
)
def test_the_api_document_names_every_field(body: type[BaseModel]) -> None:
    named = set(re.findall(r"`(\w+)`", (DOCS / "api.md").read_text()))
    assert set(body.model_fields) - SUBMIT_FIELDS - named == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_settings_document_has_the_table_that_the_code_gives(
    layer: type[EngineSettings],
) -> None:
    rows = "\n".join(_settings(layer))
    assert rows in (DOCS / "settings.md").read_text(), f"docs/settings.md should have:\n{rows}"


def test_the_newest_schema_that_the_document_has_is_that_of_the_code() -> None:
    table = (
        (DOCS / "operate" / "upgrading.md")
        .read_text()
        .partition("| schema | releases | reads |")[2]
    )
    *_, last = re.findall(r"^\| (\d+) \| .+ \| ([\d, ]+) \|$", table.partition("\n\n")[0], re.M)
    assert last == (str(SCHEMA), ", ".join(map(str, sorted(READS))))


def test_the_document_has_the_lines_of_a_backup() -> None:
    rows = _rows(
        *(
            (
                f"`{kind.model_fields['kind'].default}`",
                ", ".join(f"`{name}`" for name in kind.model_fields if name != "kind"),
            )
            for kind in get_args(Line)
        )
    )
    assert "\n".join(rows) in (DOCS / "operate" / "upgrading.md").read_text()


def test_the_layers_are_all_settings() -> None:
    assert {name for layer in LAYERS for name in layer.__annotations__} >= set(
        ServerSettings.model_fields
    )
