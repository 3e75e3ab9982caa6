"""A gateway and a worker with different data folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import refusal
from worker.outputs.local import LocalOutputs
from worker.settings import WorkerSettings
from worker.store.presence import worker_name_prefix

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
KEY = {"Idempotency-Key": "a pond"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0") as stack:
        yield stack


def test_a_gateway_that_does_not_read_the_videos_of_a_worker_takes_no_request(
    stack: Stack, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    LocalOutputs(WorkerSettings(data_dir=elsewhere).outputs_dir).check()  # marked by another worker
    url = stack.start_gateway(data_dir=str(elsewhere))
    client = stack.http()
    accepted = client.post("/v2/mochi-1", json=POND, headers=KEY)
    worker = stack.start_worker()
    eventually(lambda: stack.logs().count("outputs.other_store") == 2)  # of the gateway, the worker
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["live_workers"]) == (503, 1)
    [missing] = ready.json()["missing"]
    assert "the same MOCHI_OUTPUTS, or a MOCHI_DATA_DIR on a shared folder" in missing
    assert worker_name_prefix() not in missing  # /readyz needs no key
    for path in ("/v1/mochi-1", "/v2/mochi-1"):
        refused = client.post(path, json=POND)
        assert (refused.status_code, refused.json()["error"]) == (502, missing)
    replayed = client.post("/v2/mochi-1", json=POND, headers=KEY)
    assert replayed.json()["request_id"] == accepted.json()["request_id"]
    dry = client.post("/v2/mochi-1?dry_run=true", json=POND).json()
    assert dry["refusal"]["error"] == missing
    assert stack.logs().count("outputs.other_store") == 2
    worker.terminate()
    worker.wait(20)
    stack.start_worker(data_dir=str(elsewhere))
    eventually(lambda: client.get(f"{url}/readyz").is_success, seconds=20)
    assert client.post("/v1/mochi-1", json=POND).headers["content-type"] == "video/mp4"


def test_a_video_whose_file_is_gone_is_404_and_logged(stack: Stack) -> None:
    stack.start_gateway()
    stack.start_worker()
    client = stack.http()
    request_id = client.post("/v1/mochi-1", json=POND).headers["x-request-id"]
    link = client.get(f"/v2/requests/{request_id}").json()["output"]
    assert client.get(link).is_success
    for name in stack.outputs():
        (stack.folder / "outputs" / name).unlink()
    assert refusal(client.get(link), 404) == "The video is gone"
    assert stack.logs().count("video.unreadable") == 1


def test_what_was_queued_before_any_worker_lived_waits_for_one_that_writes_where_gateways_read(
    stack: Stack, tmp_path: Path
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    stack.start_gateway(data_dir=elsewhere)
    client = stack.http()
    request_id = client.post("/v2/mochi-1", json=POND).json()["request_id"]
    stack.start_worker()
    eventually(lambda: "the same MOCHI_OUTPUTS" in stack.logs())
    assert stack.record(request_id)["status"] == "QUEUED"
    stack.start_worker(data_dir=elsewhere)
    eventually(lambda: stack.record(request_id)["status"] == "COMPLETED")
    made = client.get(f"/v2/requests/{request_id}").json()
    assert client.get(made["output"]).content[4:8] == b"ftyp"
    assert (made["metrics"].get("retry_count"), stack.outputs()) == (None, [])
