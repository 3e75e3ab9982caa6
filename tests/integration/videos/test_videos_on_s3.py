"""The whole product with its videos in a bucket: links, blocking calls, expiry, and an outage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from typing_extensions import override

from server.api.links import Links, load_signer
from server.cli.access import Access
from server.cli.client import Client
from tests.support.jobs import ask_gateway
from tests.support.services.s3 import SECRET, ObjectStore
from tests.support.stack import Stack, eventually
from tests.support.wire import refusal
from worker.outputs.base import MARKER
from worker.provenance.identity import own_anchor
from worker.provenance.verification import Verdict, verify

POND = {"prompt": "a pond", "frames": 3, "steps": 10}
FAKE = {"engine": "fake", "fake_step_seconds": "0.01"}
FILES: dict[str, Any] = {"format": "webm", "poster": True, "last_frame": True}
RETENTION_SECONDS = 300
MEGABYTE = 1_000_000


class Bucket(Stack):
    """A stack that keeps its videos in a new bucket."""

    def __init__(self, folder: Path, store: ObjectStore, **settings: str) -> None:
        self.s3 = store
        self.bucket = store.new_bucket()
        super().__init__(folder, outputs=f"s3://{self.bucket}/videos", **FAKE, **settings)

    @override
    def __enter__(self) -> Bucket:
        super().__enter__()
        return self

    def objects(self) -> list[str]:
        return self.s3.keys(self.bucket)

    def key_of(self, request_id: str) -> str:
        return f"videos/{self.record(request_id)['file_name']}"

    @cached_property
    def client(self) -> httpx2.Client:
        """With one key for all requests."""
        return self.http()

    def ended(self, **files: Any) -> httpx2.Response:
        """The result of a new request, when it has one."""
        return self.end_of(self.client.post("/v2/mochi-1", json=POND | files))

    def end_of(self, submit: httpx2.Response) -> httpx2.Response:
        submitted = submit.json()
        path = urlsplit(submitted["response_url"]).path

        def final() -> httpx2.Response | None:
            answer = self.client.get(path)
            return answer if answer.json()["status"] in {"COMPLETED", "FAILED"} else None

        answer = eventually(final)
        assert answer
        return answer


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_object_store: ObjectStore
) -> Iterator[Bucket]:
    settings = {"retention_seconds": str(RETENTION_SECONDS), "stall_seconds": "4"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shared_object_store.environ().items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("s3")
        with Bucket(folder, shared_object_store, **settings) as stack:
            stack.start_gateway()
            stack.start_worker()
            yield stack


@pytest.fixture
def stack(shared: Bucket) -> Iterator[Bucket]:
    """A gateway and a worker on a store that behaves."""
    yield shared
    shared.s3.heal()


@pytest.fixture(scope="module")
def made(shared: Bucket) -> dict[str, Any]:
    """The result of a request."""
    body: dict[str, Any] = shared.ended().json()
    return body


def own_link(stack: Bucket, request_id: str) -> str:
    """The gateway's own link, which answers do not have here and which works all the same."""
    return Links(stack.url, request_id).video(ask_gateway(stack.broker.url, load_signer))


def test_a_cached_video_is_read_from_the_bucket_and_shows_no_other_request(
    tmp_path: Path, shared_object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared_object_store.environ().items():
        monkeypatch.setenv(name, value)
    with Bucket(tmp_path, shared_object_store, cache="true") as stack:
        stack.start_gateway()
        stack.start_worker()
        first, cached, other = (
            stack.ended(poster=True, **asked).json() for asked in ({}, {}, {"fps": 24})
        )
        assert [body["metrics"].get("cached") for body in (first, cached, other)] == [
            *(None, True, True),
        ]
        for body in (cached, other):
            assert first["request_id"] not in str(body)
            assert body["output"].startswith(stack.url)
        whole, again = (httpx2.get(body["output"]) for body in (first, cached))
        assert again.content == whole.content
        part = httpx2.get(cached["output"], headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        posters = {httpx2.get(body["poster"]["url"]).content for body in (first, cached, other)}
        assert len(posters) == 1
        assert stack.client.delete(f"/v1/videos/{first['request_id']}").status_code == 200
        assert httpx2.get(cached["output"]).content == whole.content
        assert stack.client.delete(f"/v1/videos/{cached['request_id']}").status_code == 200
        assert {name for name in stack.objects() if first["request_id"] in name} == set()


def test_a_draft_keeps_its_checkpoint_in_the_bucket_until_it_is_deleted(shared: Bucket) -> None:
    whole = shared.ended().json()
    draft = shared.ended(draft_steps=4).json()
    checkpoint = f"videos/{draft['request_id']}.checkpoint"
    assert checkpoint in shared.objects()
    path = urlsplit(draft["draft"]["finish_url"]).path
    finished = shared.end_of(shared.client.post(path)).json()
    assert httpx2.get(finished["output"]).content == httpx2.get(whole["output"]).content
    assert "checkpoint.resumed" in shared.logs()
    assert checkpoint in shared.objects()
    assert shared.client.delete(f"/v1/videos/{draft['request_id']}").is_success
    assert checkpoint not in shared.objects()


def test_a_result_links_to_the_object_itself_for_as_long_as_it_lives(
    stack: Bucket, made: dict[str, Any]
) -> None:
    key = stack.key_of(made["request_id"])
    link = urlsplit(made["output"])
    assert made["output"] == made["video"]["url"]
    assert made["output"].startswith(f"{stack.s3.url}/{stack.bucket}/{key}?")
    (seconds,) = parse_qs(link.query)["X-Amz-Expires"]
    assert RETENTION_SECONDS - 30 <= int(seconds) <= RETENTION_SECONDS
    answer = httpx2.get(made["output"])
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.content[4:8] == b"ftyp"
    assert len(answer.content) == made["video"]["file_size"]
    assert httpx2.get(made["output"], headers={"range": "bytes=4-7"}).content == b"ftyp"
    assert stack.outputs() == []  # no draft stays on the disk


def test_a_video_in_the_bucket_is_signed(stack: Bucket, made: dict[str, Any]) -> None:
    found = verify(BytesIO(httpx2.get(made["output"]).content), own_anchor(stack.folder) or b"")
    assert (found.verdict, found.model) == (Verdict.TRUSTED, "light mock")
    assert stack.outputs() == []


def test_a_changed_video_in_the_bucket_is_found(stack: Bucket) -> None:
    key = stack.key_of(stack.ended().json()["request_id"])
    video = bytearray(stack.s3.get(stack.bucket, key))
    video[video.index(b"mdat") + 40] ^= 1
    assert verify(BytesIO(video), own_anchor(stack.folder) or b"").verdict is Verdict.INVALID


def test_the_page_may_show_videos_from_the_bucket(stack: Bucket) -> None:
    policy = httpx2.get(stack.url).headers["content-security-policy"]
    assert policy.endswith(f"; media-src 'self' {stack.s3.url}")


def test_version_says_that_links_lead_to_the_bucket(stack: Bucket) -> None:
    assert httpx2.get(f"{stack.url}/version").json()["link_origins"] == [stack.s3.url]


def test_a_blocking_call_answers_with_the_bytes(stack: Bucket) -> None:
    answer = stack.client.post("/v1/mochi-1", json=POND | {"width": 1})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["x-seed-value"] == "985521"
    assert answer.headers["x-ignored-parameters"] == "width"
    key = stack.key_of(answer.headers["x-request-id"])
    assert answer.content == stack.s3.get(stack.bucket, key)


def test_the_gateways_own_link_serves_the_whole_and_ranges(
    stack: Bucket, made: dict[str, Any]
) -> None:
    link = own_link(stack, made["request_id"])
    content = httpx2.get(made["output"]).content
    assert httpx2.get(link).content == content
    part = httpx2.get(link, headers={"range": "bytes=-100"})
    assert (part.status_code, part.content) == (206, content[-100:])
    assert httpx2.head(link).headers["content-length"] == str(len(content))
    beyond = httpx2.get(link, headers={"range": f"bytes={len(content)}-"})
    assert f"{len(content):,} bytes" in refusal(beyond, 416)


def test_our_own_client_downloads_it_and_keeps_its_key_to_itself(
    stack: Bucket, tmp_path: Path
) -> None:
    stack.s3.heal()
    client = Client(Access(stack.url, stack.key()))
    client.generate(POND, tmp_path / "pond.mp4")
    client._http.close()  # it cannot be closed otherwise
    assert (tmp_path / "pond.mp4").read_bytes()[4:8] == b"ftyp"
    assert "GET" in stack.s3.asked
    assert "x-api-key" not in stack.s3.headers_seen


def test_the_sdk_gets_both(stack: Bucket) -> None:
    result = stack.sdk().run("mochi-1", **POND)
    assert httpx2.get(result["output"]).content[4:8] == b"ftyp"
    assert stack.sdk().run_sync("mochi-1", **POND).content[4:8] == b"ftyp"


def test_a_store_that_gives_no_byte_is_a_clean_500_with_the_id(stack: Bucket) -> None:
    stack.s3.fail("GET", then=403)
    answer = stack.client.post("/v1/mochi-1", json=POND)
    assert "The video cannot be read" in refusal(answer, 500)
    request_id = answer.json()["request_id"]
    stack.s3.heal()
    result = stack.client.get(f"/v2/requests/{request_id}").json()
    assert httpx2.get(result["output"]).is_success


def test_a_store_that_breaks_off_breaks_the_answer_off(stack: Bucket) -> None:
    made = stack.ended().json()
    record = f"mochi:request:{made['request_id']}"
    stack.redis.hset(record, "file_size", 3 * MEGABYTE)
    key = stack.key_of(made["request_id"])
    stack.s3.put(stack.bucket, key, os.urandom(3 * MEGABYTE))
    stack.s3.fail("GET", "cut", then=403)
    received: list[bytes] = []
    with httpx2.stream("GET", own_link(stack, made["request_id"])) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            received.extend(answer.iter_raw())
    assert stack.client.get("/healthz").is_success


def test_an_outage_at_the_end_fails_the_request_and_not_the_worker(stack: Bucket) -> None:
    before = stack.objects()
    stack.s3.fail("PUT", then=503)
    answer = stack.ended()
    assert answer.status_code == 422
    assert answer.json()["error_code"] == "storage"
    assert answer.json()["error"].startswith("The video cannot be kept: the object store")
    assert stack.objects() == before
    assert stack.outputs() == []
    stack.s3.heal()
    assert stack.ended().json()["status"] == "COMPLETED"
    assert all(process.poll() is None for process in stack.processes)
    assert stack.live_workers() == 1


def test_all_files_are_in_the_bucket_and_served_from_there_as_what_they_are(stack: Bucket) -> None:
    made = stack.ended(**FILES).json()
    kinds = {"video": "video/webm", "poster": "image/jpeg", "last_frame": "image/jpeg"}
    for name, kind in kinds.items():
        assert made[name]["url"].startswith(f"{stack.s3.url}/{stack.bucket}/videos/")
        answer = httpx2.get(made[name]["url"])
        assert answer.headers["content-type"] == made[name]["content_type"] == kind
        assert len(answer.content) == made[name]["file_size"]
        own = own_link(stack, made["request_id"]).replace(
            f"{made['request_id']}.mp4", made[name]["file_name"]
        )
        assert httpx2.get(own).content == answer.content
        part = httpx2.get(own, headers={"range": "bytes=-50"})
        assert (part.status_code, part.content) == (206, answer.content[-50:])
    owned = [key for key in stack.objects() if made["request_id"] in key]
    assert len(owned) == 3
    assert stack.client.delete(f"/v1/videos/{made['request_id']}").is_success
    assert not [key for key in stack.objects() if made["request_id"] in key]


def test_a_still_that_the_store_refuses_fails_the_request_and_leaves_nothing(
    stack: Bucket,
) -> None:
    before = stack.objects()
    stack.s3.fail("PUT", None, then=503)  # it takes the first one
    answer = stack.ended(**FILES)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "storage")
    assert answer.json()["error"].startswith("The picture cannot be kept: the object store")
    assert stack.objects() == before
    assert stack.outputs() == []


def test_a_history_comes_without_a_link_that_cannot_be_signed(stack: Bucket) -> None:
    spoiled, made = (stack.ended().json()["request_id"] for _ in range(2))
    stack.redis.hset(f"mochi:request:{spoiled}", "file_name", "odd")
    for path in ("recent-generations", "generations", "request-history"):
        rows = refused_none(stack.client.get(f"/inference-request/{path}"))["generations"]
        urls = {row["request_id"]: row["generation_url"] for row in rows}
        assert urls[spoiled] is None
        assert httpx2.get(urls[made]).content[4:8] == b"ftyp"
    row = refused_none(stack.client.get(f"/inference-request/request-history/{spoiled}"))
    assert (row["model_status"], row["generation_url"]) == ("COMPLETED", None)
    assert [
        line for line in stack.logs().splitlines() if "history.no_link" in line and spoiled in line
    ]


def refused_none(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_no_log_has_a_secret_or_a_signature(stack: Bucket) -> None:
    logs = stack.logs()
    assert "storage.failed" in logs or "worker.ready" in logs
    assert SECRET not in logs
    assert "X-Amz-Signature" not in logs


def test_an_expired_video_is_taken_from_the_bucket(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    with Bucket(tmp_path, object_store, retention_seconds="2") as stack:
        stack.start_gateway()
        stack.start_worker()
        object_store.put(stack.bucket, "videos/holiday.mp4", b"of another program")
        made = stack.ended().json()
        assert stack.key_of(made["request_id"]) in stack.objects()
        others = ["videos/holiday.mp4", f"videos/{MARKER}"]
        eventually(lambda: stack.objects() == others, seconds=15)
        assert stack.client.get(f"/v2/requests/{made['request_id']}").status_code == 404


def test_a_worker_waits_for_a_store_that_is_away(object_store: ObjectStore, tmp_path: Path) -> None:
    with Bucket(tmp_path, object_store) as stack:
        object_store.fail("PUT", then=503)
        worker = stack.start("worker")
        eventually(lambda: "outputs.away" in stack.log_of(worker))
        assert worker.poll() is None
        assert stack.live_workers() == 0
        object_store.heal()
        eventually(lambda: stack.live_workers() == 1)


def test_a_start_with_a_store_that_cannot_be_used_ends_with_a_remedy(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    with Bucket(tmp_path, object_store) as stack:
        other = stack.start("worker", environ={"MOCHI_OUTPUTS": "s3://no-such-bucket"})
        gateway = stack.start("server", environ={"AWS_ENDPOINT_URL": "minio:9000"})
        for process, said in [
            (other, "MOCHI_OUTPUTS: there is no bucket for s3://no-such-bucket. Make it"),
            (gateway, "AWS_ENDPOINT_URL: got 'minio:9000'. It must be the address"),
        ]:
            assert process.wait(30) == os.EX_CONFIG
            assert said in stack.log_of(process)
            assert "Traceback" not in stack.log_of(process)
