"""The tables of the README say what the code does. On a difference, the right table is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from models.params import GenerateParams
from server.api.routes import account, event_stream, generate, operations, requests
from server.api.routes import videos as videos_api
from server.errors import MEANING
from server.settings import ServerSettings

README = Path(__file__).parents[2] / "README.md"
ROUTERS = (
    generate.router,
    requests.router,
    event_stream.router,
    videos_api.router,
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
    fields = GenerateParams.model_json_schema()["properties"]
    return _rows(
        *(
            (
                f"`{name}`",
                "required" if "default" not in field else f"`{field['default']!r}`",
                _range(field),
                field["description"],
            )
            for name, field in fields.items()
        )
    )


def _range(field: dict[str, object]) -> str:
    if "maxLength" in field:
        return f"at most {field['maxLength']:,} characters"
    return f"{field['minimum']:g} – {_short(field['maximum'])}"  # noqa: RUF001 (a range)


def _short(number: object) -> str:
    return "2^63-1" if number == 2**63 - 1 else f"{number:g}"


def _settings() -> list[str]:
    return _rows(
        *(
            (f"`MOCHI_{name.upper()}`", _default(name, field.default), field.description)
            for name, field in ServerSettings.model_fields.items()
        )
    )


def _default(name: str, default: object) -> str:
    if name == "data_dir":
        return "`~/.local/share/mochi-server`"
    shown = str(default).lower() if isinstance(default, bool) else default
    return "" if default == "" else f"`{shown}`"


@pytest.mark.parametrize("table", [_routes, _errors, _parameters, _settings])
def test_the_readme_has_the_table_that_the_code_gives(table: object) -> None:
    assert callable(table)
    rows = "\n".join(table())
    assert rows in README.read_text(), f"README.md should have:\n{rows}"
