"""Responses of a gateway that has no credentials for its bucket."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from redis import Redis
from structlog.testing import capture_logs

from server.app import create_app
from server.keys.lookup import digest
from server.keys.record import NewKey
from server.keys.store import create_key
from server.settings import ServerSettings
from tests.support.jobs import ask_gateway, params, pop
from tests.support.wire import call
from worker.broker.connection import connect_gateway
from worker.outputs.base import video_name
from worker.store import keyspace
from worker.store.worker_side import Lease, Result, WorkerStore


@pytest.fixture
def app(
    request: pytest.FixtureRequest,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> FastAPI:
    """`request.param`: further settings."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/mochi")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "gone"))
    further = getattr(request, "param", {})
    settings = ServerSettings(
        data_dir=tmp_path, redis_url=redis_url, outputs="s3://videos", **further
    )
    return create_app(settings, connect_gateway(redis_url))


def complete(redis: Redis, url: str, owner: str) -> None:
    submitted = ask_gateway(url, lambda it: it.submit(params(), owner))
    lease = Lease(submitted.request_id, "run")
    assert pop(redis) == lease.request_id
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    assert store.start(lease, "ann")
    store.complete(lease, Result(video_name(lease.request_id, "0" * 12), 17))


@pytest.mark.parametrize("path", ["recent-generations", "generations", "request-history"])
def test_a_history_tries_to_sign_one_link(
    app: FastAPI, redis: Redis, redis_url: str, path: str
) -> None:
    secret = create_key(redis, NewKey(name="ann"))
    owner = str(redis.hget(keyspace.SECRETS, digest(secret)))
    for _ in range(3):
        complete(redis, redis_url, owner)
    url = f"http://gateway/inference-request/{path}"
    with capture_logs() as logs:
        (answer,) = call(app, httpx2.Request("GET", url, headers={"x-api-key": secret}))
    assert [row["generation_url"] for row in answer.json()["generations"]] == [None] * 3
    events = [line["event"] for line in logs]
    assert (events.count("storage.failed"), events.count("history.no_link")) == (1, 1)


def test_version_and_page_name_the_bucket_without_a_signature(app: FastAPI) -> None:
    with capture_logs() as logs:
        asked = (httpx2.Request("GET", f"http://gateway/{path}") for path in ("version", ""))
        version, page = call(app, *asked)
    bucket = "https://s3.eu-north-1.amazonaws.com"
    assert version.json()["link_origins"] == [bucket]
    assert page.headers["content-security-policy"].endswith(f"media-src 'self' {bucket}")
    assert not [line for line in logs if line["log_level"] == "warning"]


@pytest.mark.parametrize("app", [{"public_url": "https://videos.example"}], indirect=True)
def test_the_page_may_show_cached_videos_whose_links_lead_to_the_gateway(app: FastAPI) -> None:
    (page,) = call(app, httpx2.Request("GET", "http://gateway/"))
    _, media = page.headers["content-security-policy"].split("; media-src ")
    assert {*media.split()} == {
        *("'self'", "https://videos.example", "https://s3.eu-north-1.amazonaws.com"),
    }
