"""Two hosts that share nothing but a broker and a bucket: sets of processes with folders apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.brokers import SAFE, ExternalStack, valkey
from tests.support.services.s3 import ObjectStore
from tests.support.stack import Stack, eventually
from tests.support.wire import ended

PASSWORD = "hunter2"
SETTINGS = {"fake_step_seconds": "0.05", "lease_seconds": "2", "checkpoint_steps": "5"}
POND = {"prompt": "a pond", "frames": 3, "steps": 10}


@pytest.fixture
def hosts(tmp_path: Path, object_store: ObjectStore) -> Iterator[tuple[Stack, Stack]]:
    outputs = f"s3://{object_store.new_bucket()}/videos"
    password = ("--requirepass", PASSWORD)
    with valkey(tmp_path / "broker", *SAFE, *password, password=PASSWORD) as broker:
        url = f"redis://:{PASSWORD}@127.0.0.1:{broker.port}/0"
        folders = tmp_path / "here", tmp_path / "there"
        for folder in folders:
            folder.mkdir()
        here, there = (
            ExternalStack(folder, url, outputs=outputs, **SETTINGS) for folder in folders
        )
        with here, there:
            yield here, there


def test_a_gateway_here_serves_what_a_worker_there_has_made(hosts: tuple[Stack, Stack]) -> None:
    here, there = hosts
    here.start_gateway()
    there.start_worker()
    client = here.sdk()
    assert client.run_sync("mochi-1", **POND).content[4:8] == b"ftyp"
    made = client.run("mochi-1", **POND)
    assert here.http().get(made["output"]).content[4:8] == b"ftyp"
    assert not list(here.folder.rglob("*.mp4*"))


def test_a_host_that_goes_down_leaves_its_request_to_the_other(hosts: tuple[Stack, Stack]) -> None:
    here, there = hosts
    for host in hosts:
        host.start_gateway()
    key = here.key()
    lost = there.start_worker()
    submitted = here.http(key).post("/v2/mochi-1", json={**POND, "steps": 75}).json()
    request_id = str(submitted["request_id"])
    eventually(lambda: int(there.record(request_id).get("step", 0)) >= 12)
    for process in (lost, there.processes[0]):
        process.kill()
    heir = here.start_worker()
    body = ended(here.http(key), request_id)
    assert (body["status"], body["metrics"]["retry_count"]) == ("COMPLETED", 1)
    assert '"event": "checkpoint.resumed"' in here.log_of(heir)
    assert here.http().get(body["output"]).content[4:8] == b"ftyp"
