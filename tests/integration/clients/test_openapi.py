"""The OpenAPI document: true to the gateway, true to the parameters, and readable offline."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from jsonschema_rs import Draft202012Validator

from models.request.example import EXAMPLE_REQUEST
from tests.support.stack import Stack
from tests.support.wire import another_gateway

SUBMITS = ["/v1/mochi-1", "/v2/mochi-1"]
FAST_SUBMITS = ["/v1/mochi-1-fast", "/v2/mochi-1-fast"]
PARAMETERS = {
    "prompt": {"type": "string", "maxLength": 4000},
    "negative_prompt": {"type": "string", "maxLength": 4000, "default": ""},
    "guidance_scale": {"type": "number", "minimum": 2, "maximum": 10, "default": 4.5},
    "fps": {"type": "number", "minimum": 7, "maximum": 30, "default": 16},
    "frames": {"type": "integer", "minimum": 1, "maximum": 160, "default": 52},
    "steps": {"type": "integer", "minimum": 10, "maximum": 75, "default": 30},
    "seed": {"type": "integer", "minimum": -1, "maximum": 2**63 - 1, "default": 985521},
    "format": {"type": "string", "enum": ["mp4", "webm", "gif"], "default": "mp4"},
    "poster": {"type": "boolean", "default": False},
    "last_frame": {"type": "boolean", "default": False},
    "lora": {
        "anyOf": [
            {"type": "string", "pattern": "^[a-z0-9-]{1,40}$"},
            {
                "type": "object",
                "propertyNames": {"pattern": "^[a-z0-9-]{1,40}$"},
                "additionalProperties": {"type": "number", "minimum": -2, "maximum": 2},
                "maxProperties": 4,
            },
            {"type": "null"},
        ],
        "default": None,
    },
}
"""As the contract has them, and those of files, which are ours."""
FAST_PARAMETERS = PARAMETERS | {
    "guidance_scale": {"type": "number", "minimum": 1, "maximum": 3, "default": 1.5},
    "steps": {"type": "integer", "minimum": 4, "maximum": 16, "default": 8},
}

SCHEMATHESIS = """
hooks = "hooks"
seed = 1
headers = {{ x-api-key = "{key}" }}
continue-on-failure = true

[parameters]
# Others would end the worker, or the request.
"header.x-mock-scenario" = "slow:0"

[generation]
max-examples = {examples}
no-shrink = true

[checks]
# Whether there is room in the queue is not for the document to say.
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = ["400", "401", "404", "405", "406", "413", "429", "5xx"]
# DELETE cancels: a request that runs goes on to its next step, and its record stays for an hour.
use_after_free.enabled = false

[[operations]]
include-path = "/v1/mochi-1"
generation.max-examples = 10
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""

HOOKS = """
import re

import hypothesis
import schemathesis

# Otherwise most of the time goes into shrinking what was accepted, which brings few new calls.
hypothesis.target = lambda *_args, **_options: None

NUMBERS = ("guidance_scale", "fps", "frames", "steps", "seed", "seconds", "draft_steps", "count")
FLAGS = ("poster", "last_frame")


# The gateway is more lenient than its document: null is a default, and numbers and flags may come
# as text.
@schemathesis.hook
def filter_body(context, body):
    return not isinstance(body, dict) or not any(
        value is None
        or (name in NUMBERS and re.fullmatch(r"-?[0-9.]+", str(value)))
        or (name in FLAGS and value in ("true", "false"))
        for name, value in body.items()
        if name not in NUMBERS or isinstance(value, str)
    )
"""


@pytest.fixture(scope="module")
def document(server: Stack) -> dict[str, Any]:
    answer = httpx2.get(f"{server.url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    return body


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield f"{verb.upper()} {path}", operation


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the component that it refers to."""
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    found: dict[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def schemas(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those of an operation's bodies, in both directions."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        for content in body.get("content", {}).values():
            yield content.get("schema") or content["itemSchema"]


@pytest.mark.parametrize(
    ("examples", "fewest_cases"), [(30, 700), pytest.param(105, 2_000, marks=pytest.mark.slow)]
)
def test_the_gateway_does_what_its_document_says(
    tmp_path: Path, examples: int, fewest_cases: int
) -> None:
    with Stack(
        tmp_path, engine="fake", fake_step_seconds="0", v1_seconds="0.1", most_waiting="3"
    ) as stack:
        url = stack.start_gateway()
        stack.start_worker()
        config = tmp_path / "schemathesis.toml"
        config.write_text(SCHEMATHESIS.format(key=stack.key(), examples=examples))
        (tmp_path / "hooks.py").write_text(HOOKS)
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "http.bug" not in stack.logs()
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases
    assert int(cases[1]) >= fewest_cases


@pytest.mark.parametrize(
    ("path", "parameters"),
    [(path, PARAMETERS) for path in SUBMITS] + [(path, FAST_PARAMETERS) for path in FAST_SUBMITS],
)
def test_parameters_have_the_types_ranges_and_defaults_of_the_contract(
    document: dict[str, Any], path: str, parameters: dict[str, Any]
) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = resolved(document, content["schema"])
    shown = {
        name: {key: value for key, value in field.items() if key not in {"title", "description"}}
        for name, field in schema["properties"].items()
    }
    url = {"type": ["string", "null"], "maxLength": 2048}
    whole = {"type": ["integer", "null"], "minimum": 1}
    most_steps = parameters["steps"]["maximum"] - 1
    plan = {"draft_steps": {**whole, "maximum": most_steps}, "count": {**whole, "maximum": 8}}
    assert shown == parameters | {"webhook_url": url} | (plan if "/v2/" in path else {})
    assert schema["required"] == ["prompt"]


@pytest.mark.parametrize("path", SUBMITS)
def test_the_example_is_that_of_the_api_page_and_valid(document: dict[str, Any], path: str) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == EXAMPLE_REQUEST
    schema = resolved(document, content["schema"])
    Draft202012Validator(schema).validate(content["example"])


@pytest.mark.parametrize("path", FAST_SUBMITS)
def test_the_example_of_the_fast_model_has_its_defaults_and_is_valid(
    document: dict[str, Any], path: str
) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == EXAMPLE_REQUEST | {"steps": 8, "guidance_scale": 1.5}
    schema = resolved(document, content["schema"])
    Draft202012Validator(schema).validate(content["example"])


def test_every_operation_has_an_id_of_its_own_a_text_and_only_our_errors(
    document: dict[str, Any],
) -> None:
    found = dict(operations(document))
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(ids)
    for name, operation in found.items():
        assert operation["summary"], name
        assert operation["description"], name
        for status, response in operation["responses"].items():
            if status >= "400" and status not in {"422", "503"}:
                schema = response["content"]["application/json"]["schema"]
                body = "VideosErrorBody" if " /v1/videos" in name else "ErrorBody"
                assert schema == {"$ref": f"#/components/schemas/{body}"}, (name, status)
    assert "ValidationError" not in str(document)


def test_operation_ids_are_short_and_stable(document: dict[str, Any]) -> None:
    """Clients that are generated name their functions after them."""
    ids = {name: operation["operationId"] for name, operation in operations(document)}
    assert ids == {
        "POST /v2/mochi-1": "submit_video",
        "POST /v1/mochi-1": "generate_video",
        "POST /v2/mochi-1-fast": "submit_video_mochi_1_fast",
        "POST /v1/mochi-1-fast": "generate_video_mochi_1_fast",
        "POST /v2/requests/{request_id}/finish": "finish_draft",
        "GET /v2/requests/{request_id}/status": "get_status",
        "GET /v2/requests/{request_id}": "get_result",
        "GET /v1/requests/{request_id}": "poll_result",
        "GET /v2/requests/{request_id}/events": "stream_events",
        "PUT /v2/requests/{request_id}/cancel": "cancel_request",
        "DELETE /v2/requests/{request_id}": "delete_request",
        "GET /v2/videos/{request_id}.mp4": "download_video",
        "GET /v2/videos/{request_id}.webm": "download_webm",
        "GET /v2/videos/{request_id}.gif": "download_gif",
        "GET /v2/videos/{request_id}-{still}.jpg": "download_still",
        "POST /v1/videos": "create_video",
        "GET /v1/videos": "list_videos",
        "GET /v1/videos/{request_id}": "get_video",
        "GET /v1/videos/{request_id}/content": "get_video_content",
        "DELETE /v1/videos/{request_id}": "delete_video",
        "GET /v1/models": "list_models",
        "GET /v1/models/mochi-1": "get_model",
        "GET /v1/models/mochi-1-fast": "get_model_mochi_1_fast",
        "GET /inference-model-information/list": "list_hosted_models",
        "GET /inference-request/recent-generations": "get_recent_generations",
        "GET /inference-request/generations": "list_generations",
        "GET /inference-request/request-history": "list_history",
        "GET /inference-request/request-history/{request_id}": "get_history",
        "GET /webhook/get": "list_webhooks",
        "POST /webhook/add": "add_webhook",
        "POST /webhook/update": "update_webhook",
        "GET /webhook/inactive": "delete_webhook",
        "GET /webhook/dispatch-logs": "get_webhook_logs",
        "GET /v1/get-user-credits": "get_credits",
        "GET /api/auth/authenticate": "get_account",
        "GET /v1/usage": "get_usage",
        "GET /healthz": "get_health",
        "GET /readyz": "get_readiness",
        "GET /version": "get_version",
        "GET /metrics": "get_metrics",
    }
    events = [event["post"]["operationId"] for event in document["webhooks"].values()]
    assert events == ["request_ended", "budget_spent"]


def test_every_body_is_a_named_component_and_every_name_is_one(document: dict[str, Any]) -> None:
    """A body without a name would get one from its path."""
    for name, operation in operations(document):
        for schema in schemas(operation):
            parts = schema.get("anyOf", [schema])
            assert all("$ref" in part or part["type"] == "string" for part in parts), name
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == set(document["components"]["schemas"])


def test_the_document_says_where_the_server_is(server: Stack, document: dict[str, Any]) -> None:
    assert document["servers"] == [{"url": "/"}]
    public = another_gateway(server, public_url="https://videos.example")
    shown = httpx2.get(f"{public}/openapi.json", headers={"host": "anything"}).json()
    assert shown["servers"] == [{"url": "https://videos.example"}]


def test_422_is_documented_as_failed_and_as_nothing_else(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if "422" in operation["responses"]:
            schema = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/FailedBody"}, name


def test_what_is_shown_as_open_is_open_and_all_else_needs_a_key(
    server: Stack, document: dict[str, Any]
) -> None:
    assert {"x-api-key": []} in document["security"]
    for name, operation in operations(document):
        verb, path = name.split()
        answer = httpx2.request(verb, server.url + path)
        is_open = operation.get("security") == []
        assert (answer.status_code == 401) is not is_open, name


class _Addresses(HTMLParser):
    """Collects what a browser would load for a page, and what its scripts call."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href"} and value]


def test_docs_load_nothing_from_elsewhere(server: Stack) -> None:
    page = httpx2.get(f"{server.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"(?m)^\s*(//|<!--).*$", "", page.text)
    assert "'openapi.json'" in page.text
    assets = _Addresses(page.text).found
    assert len(assets) >= 3
    for address in assets:
        assert urlsplit(address).netloc == ""
        asset = httpx2.get(str(page.url.join(address)))
        assert asset.is_success, address
        assert len(asset.content) > 500


def test_the_assets_of_docs_load_nothing_from_other_hosts(server: Stack) -> None:
    css = httpx2.get(f"{server.url}/docs/swagger-ui.css").text
    assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", css)
    assert "@import" not in css
