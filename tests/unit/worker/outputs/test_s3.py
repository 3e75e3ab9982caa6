"""What becomes of a video when the object store misbehaves: kept whole or refused, never half."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.services.s3 import SECRET, Fault, ObjectStore
from worker.errors import OutputsUnusableError, StorageError
from worker.outputs.base import Outputs, video_name
from worker.outputs.factory import open_outputs
from worker.outputs.s3 import S3Outputs
from worker.settings import WorkerSettings

PATIENCE_SECONDS = 0.5
"""Of who is to give up. The store answers others in time on any machine."""
LONG_PATIENCE_SECONDS = 10.0
SLACK_SECONDS = 2.0
"""For a busy machine. Without a bound, the library would try for minutes."""
REQUEST = "0b6f4a52-1f43-4c5f-9d57-000000000000"
NAME = video_name(REQUEST, "0123456789ab")
VIDEO = os.urandom(600_000)


class Desk:
    """A worker's view of a bucket."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.bucket = store.new_bucket()
        self.outputs = self.open(patience=LONG_PATIENCE_SECONDS)
        self.hasty = self.open()

    def open(self, bucket: str = "", *, patience: float = PATIENCE_SECONDS) -> Outputs:
        settings = WorkerSettings(
            data_dir=self.folder, outputs=f"s3://{bucket or self.bucket}/videos/"
        )
        return open_outputs(settings, patience_seconds=patience)

    def publish(self, outputs: Outputs | None = None) -> int:
        outputs = outputs or self.outputs
        outputs.draft(NAME).write_bytes(VIDEO)
        return outputs.publish(NAME)

    def read(self, outputs: Outputs | None = None) -> bytes:
        return b"".join((outputs or self.outputs).read(NAME))

    def drafts(self) -> list[Path]:
        return list((self.folder / "outputs").iterdir())


@pytest.fixture
def desk(object_store: ObjectStore, tmp_path: Path) -> Desk:
    return Desk(object_store, tmp_path)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


# Publishing


@pytest.mark.parametrize("faults", [(500,), (503, 429, 500), ("cut",), ("hang",)], ids=str)
def test_a_store_that_fails_for_a_moment_is_asked_again(
    desk: Desk, faults: tuple[Fault, ...]
) -> None:
    desk.store.fail("PUT", *faults)
    assert desk.publish() == len(VIDEO)
    assert desk.store.asked.count("PUT") == len(faults) + 1
    desk.store.heal()
    assert desk.read() == VIDEO
    assert desk.drafts() == []


def test_two_workers_that_mark_a_new_bucket_together_read_one_mark(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_outputs: S3Outputs) -> str:
        monkeypatch.undo()
        raise FileNotFoundError

    mark = desk.outputs.mark()
    monkeypatch.setattr(S3Outputs, "_read_mark", absent)
    assert desk.open(patience=LONG_PATIENCE_SECONDS).mark() == mark


@pytest.mark.parametrize("fault", [400, 403, 404, 503, "cut", "hang"])
def test_a_store_that_goes_on_failing_refuses_within_the_patience_and_has_nothing(
    desk: Desk, fault: Fault
) -> None:
    desk.store.fail("PUT", then=fault)
    started = time.monotonic()
    with capture_logs() as logs, pytest.raises(StorageError) as error:
        desk.publish(desk.hasty)
    assert time.monotonic() - started < PATIENCE_SECONDS + SLACK_SECONDS
    assert str(error.value) == (
        "The video cannot be kept: the object store refuses or does not answer. "
        "The server's log says more."
    )
    (line,) = logs
    assert line["event"] == "storage.failed"
    assert "Error performing PUT" in line["reason"]
    assert SECRET not in str(logs)
    assert desk.store.keys(desk.bucket) == []
    assert desk.drafts() == []


def test_a_store_that_does_not_listen_raises_in_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    outputs = desk.open()
    uses: list[Callable[[], object]] = [
        lambda: desk.publish(outputs),
        lambda: outputs.read(NAME),
        lambda: outputs.save_checkpoint(REQUEST, b"data"),
        lambda: outputs.sweep(lambda _: False, older_than=0),
        outputs.check,
    ]
    for use in uses:
        started = time.monotonic()
        with pytest.raises(StorageError):
            use()
        assert time.monotonic() - started < PATIENCE_SECONDS + SLACK_SECONDS
    outputs.remove(NAME)
    outputs.remove_checkpoint(REQUEST)
    assert outputs.load_checkpoint(REQUEST) is None
    assert outputs.link(NAME, 60)  # without a call to the store
    assert desk.drafts() == []


def test_other_threads_run_while_a_store_hangs(desk: Desk) -> None:
    desk.store.fail("PUT", then="hang")
    beats: list[float] = []
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            beats.append(time.monotonic())

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(StorageError):
            desk.publish(desk.hasty)
    finally:
        over.set()
        heart.join()
    assert len(beats) > 5
    # Less, but not by how much: that is the machine's.
    assert max(after - before for before, after in pairwise(beats)) < PATIENCE_SECONDS


# Reading


def test_a_video_that_breaks_off_is_gone_on_with_from_there(desk: Desk) -> None:
    desk.publish()
    desk.store.fail("GET", 503, "cut", "cut")
    assert desk.read() == VIDEO


@pytest.mark.parametrize("fault", [403, 500, "hang", "cut"])
def test_a_store_that_gives_nothing_back_is_an_error_not_a_short_video(
    desk: Desk, fault: Fault
) -> None:
    desk.publish()
    desk.store.fail("GET", then=fault)
    with pytest.raises(StorageError, match="The video cannot be read"):
        desk.read(desk.hasty)


@pytest.mark.parametrize("fault", [403, "cut"])
def test_a_checkpoint_that_cannot_be_read_is_as_none(desk: Desk, fault: Fault) -> None:
    desk.outputs.save_checkpoint(REQUEST, VIDEO)
    desk.store.fail("GET", then=fault)
    with capture_logs() as logs:
        assert desk.hasty.load_checkpoint(REQUEST) is None
    assert [line["event"] for line in logs] == ["storage.unread"]


@pytest.mark.parametrize("fault", [403, "cut"])
def test_a_checkpoint_that_is_refused_leaves_the_one_before(desk: Desk, fault: Fault) -> None:
    desk.outputs.save_checkpoint(REQUEST, b"before")
    desk.store.fail("PUT", then=fault)
    with pytest.raises(StorageError, match="The checkpoint cannot be kept"):
        desk.hasty.save_checkpoint(REQUEST, VIDEO)
    assert desk.outputs.load_checkpoint(REQUEST) == b"before"


def test_what_cannot_be_removed_stays_for_the_sweep(desk: Desk) -> None:
    desk.publish()
    desk.store.fail("POST", then=403)
    desk.outputs.remove(NAME)
    assert desk.store.keys(desk.bucket) == [f"videos/{NAME}"]
    with pytest.raises(StorageError, match="Expired videos stay"):
        desk.outputs.sweep(lambda _: False, older_than=-2)
    desk.store.heal()
    assert desk.outputs.sweep(lambda _: False, older_than=-2) == 1
    assert desk.store.keys(desk.bucket) == []


def test_sweepers_at_once_take_each_object_and_no_folder_of_others(desk: Desk) -> None:
    names = [video_name(REQUEST, f"{number:012x}") for number in range(5)]
    others = [f"videos/mine/{NAME}", f"other/{NAME}", f"videos-old/{NAME}"]
    for key in [f"videos/{name}" for name in names] + others:
        desk.store.put(desk.bucket, key, b"video")
    barrier = threading.Barrier(3)

    def is_kept(_request_id: str) -> bool:
        return False

    def sweep() -> None:
        barrier.wait()
        desk.outputs.sweep(is_kept, older_than=-2)

    threads = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.store.keys(desk.bucket) == sorted(others)


# The check at the start


def test_a_bucket_that_is_not_there_is_named_with_a_remedy(desk: Desk) -> None:
    with pytest.raises(OutputsUnusableError) as error:
        desk.open("no-such-bucket", patience=LONG_PATIENCE_SECONDS).check()
    assert str(error.value).startswith(
        "MOCHI_OUTPUTS: there is no bucket for s3://no-such-bucket/videos/. Make it, or correct "
        "MOCHI_OUTPUTS, AWS_REGION or AWS_ENDPOINT_URL. The store says: "
    )


@pytest.mark.parametrize("status", [301, 400, 401, 403])
@pytest.mark.parametrize("verb", ["PUT", "GET", "POST"])
def test_a_bucket_that_refuses_is_named_with_a_remedy(desk: Desk, verb: str, status: int) -> None:
    desk.store.fail(verb, then=status)
    with pytest.raises(OutputsUnusableError) as error:
        desk.outputs.check()
    said = str(error.value)
    assert said.startswith(f"MOCHI_OUTPUTS: s3://{desk.bucket}/videos/ cannot be used. Check AWS_")
    assert "s3:DeleteObject" in said
    assert SECRET not in said


def test_a_key_that_may_not_list_is_found_out(desk: Desk) -> None:
    desk.store.fault = lambda verb, path: 403 if verb == "GET" and "list-type" in path else None
    with pytest.raises(OutputsUnusableError, match="s3:ListBucket"):
        desk.outputs.check()


@pytest.mark.parametrize("fault", [429, 503, "hang"])
def test_a_store_that_is_away_may_come_back(desk: Desk, fault: Fault) -> None:
    desk.store.fail("PUT", then=fault)
    with pytest.raises(StorageError, match="does not answer; check AWS_ENDPOINT_URL"):
        desk.hasty.check()
    desk.store.heal()
    desk.outputs.check()


# Settings


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "value",
    ["minio:9000", "minio", "ftp://minio", "http://", "s3://bucket", "http://[::", "http://a b"],
)
def test_an_endpoint_that_is_none_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        OutputsUnusableError, match=re.escape(f"{variable}: got {value!r}. It must be the")
    ):
        desk.open()


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_an_endpoint_may_end_in_a_slash(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", desk.store.url + end)
    outputs = desk.open(patience=LONG_PATIENCE_SECONDS)
    desk.publish(outputs)
    assert desk.store.keys(desk.bucket) == [f"videos/{NAME}"]


def test_another_variable_that_cannot_be_read_stops_the_start(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "perhaps")
    with pytest.raises(OutputsUnusableError, match="Check the AWS_ variables"):
        desk.open()


def test_empty_variables_are_as_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE"]
    for name in names:
        monkeypatch.setenv(name, "")
    outputs = desk.open()
    outputs.check()
    assert "Token" not in (outputs.link(NAME, 60) or "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert (desk.open().link(NAME, 60) or "").startswith("https://s3.us-east-1.amazonaws.com/")


def test_the_keys_are_those_of_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    link = desk.open().link(NAME, 60) or ""
    assert link.startswith(f"{desk.store.url}/{desk.bucket}/videos/{NAME}?")
    assert "AKIAEXAMPLE%2F" in link
    assert "%2Feu-north-1%2Fs3%2F" in link
    assert "X-Amz-Security-Token=a-token" in link
