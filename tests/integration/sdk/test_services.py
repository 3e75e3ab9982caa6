"""The other calls of the official SDK: account, models, and services that this server lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from segmind import SegmindClient
from segmind.exceptions import SegmindError

from models.request.params import RequestParams
from server.keys.lookup import Scope
from tests.support.services.hosted import hosted_sdk
from tests.support.stack import Stack
from worker.store import keyspace

Call = Callable[[SegmindClient], object]

TUNING = {
    "name": "mine",
    "data_source_path": "s3://a",
    "instance_prompt": "a",
    "trigger_word": "b",
    "base_model": "FLUX",
    "train_type": "LORA",
    "machine_type": "NVIDIA_H100",
}
LACKING: list[tuple[str, Call]] = [
    ("PixelFlows", lambda sdk: sdk.pixelflows.run("a-flow", data={"prompt": "a pond"})),
    ("PixelFlows", lambda sdk: sdk.pixelflows.get_status(poll_id="an-id")),
    ("fine-tuning", lambda sdk: sdk.finetune.submit(**TUNING)),
    ("fine-tuning", lambda sdk: sdk.finetune.details("an-id")),
    ("fine-tuning", lambda sdk: sdk.finetune.list()),
    ("fine-tuning", lambda sdk: sdk.finetune.upload_presigned_url("a.zip")),
    ("fine-tuning", lambda sdk: sdk.finetune.access_update("an-id", segmind_public=True)),
    ("fine-tuning", lambda sdk: sdk.finetune.file_download("s3://a")),
]


@pytest.fixture
def sdk(server: Stack) -> Iterator[SegmindClient]:
    with hosted_sdk(server.url, server.key(credits="7.5")) as client:
        yield client


def test_the_account_is_the_key(server: Stack, sdk: SegmindClient) -> None:
    owner = server.owner(str(sdk.api_key))
    assert sdk.accounts.current() == {
        "user_id": owner,
        "username": server.redis.hget(keyspace.API_KEY + owner, "name"),
        "credits": {"balance": 7.5},
    }


def test_the_only_model_is_listed_with_its_parameters(sdk: SegmindClient) -> None:
    (model,) = sdk.models.list()["Inference Segmind Model Information List With Details"]
    assert (model["slug"], model["type"], model["title"]) == ("mochi-1", "textToVideo", "Mochi 1")
    assert model["parameters"].keys() == RequestParams.model_fields.keys()
    assert model["parameters"]["seed"]["maximum"] == 2**63 - 1


def test_a_key_that_may_not_read_is_refused(server: Stack) -> None:
    with hosted_sdk(server.url, server.key(scopes=[Scope.GENERATE])) as sdk:
        for call in (sdk.accounts.current, sdk.models.list, sdk.generations.history):
            with pytest.raises(SegmindError, match="scope `read`") as refusal:
                call()
            assert refusal.value.status == 403


@pytest.mark.parametrize(("service", "call"), LACKING)
def test_a_service_that_is_lacking_is_named(sdk: SegmindClient, service: str, call: Call) -> None:
    with pytest.raises(SegmindError) as refusal:
        call(sdk)
    assert refusal.value.status == 404
    assert refusal.value.detail == (
        f"This server has no {service}, which the hosted API has: it makes videos from text, "
        "with `mochi-1`."
    )


def test_so_is_an_upload_whatever_its_size(sdk: SegmindClient, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    for size in (10, 5_000_000):
        file.write_bytes(bytes(size))
        with pytest.raises(SegmindError, match="has no upload of files") as refusal:
            sdk.files.upload(file)
        assert refusal.value.status == 404
