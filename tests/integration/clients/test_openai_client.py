"""`/v1/videos` as the `openai` client calls it, with nothing changed but its base URL and key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Video

from models.mock.scenario import SCENARIO
from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from tests.support.wire import another_address

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
"""Their server is shut down; what it left is the shape."""

SHORT: dict[str, Any] = {"extra_body": {"frames": 1, "steps": 10}}


@pytest.fixture
def client(server: Stack) -> Iterator[OpenAI]:
    with open_client(server, server.key()) as client:
        yield client


def open_client(server: Stack, key: str) -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=60)


def poll(client: OpenAI, video: Video) -> Video:
    return client.videos.poll(video.id, poll_interval_ms=20)


def test_a_video_is_made_followed_and_downloaded(client: OpenAI) -> None:
    video = client.videos.create(model="mochi-1", prompt="a pond", seconds="4", size="848x480")  # type: ignore[arg-type]
    assert (video.object, video.model, video.size) == ("video", "mochi-1", "848x480")
    assert (video.seconds, video.prompt, video.error) == ("4", "a pond", None)
    assert video.status in {"queued", "in_progress", "completed"}
    done = poll(client, video)
    assert (done.status, done.progress) == ("completed", 100)
    assert done.completed_at
    assert done.expires_at
    assert video.created_at <= done.completed_at < done.expires_at
    assert done.expires_at - done.completed_at == pytest.approx(3600, abs=1)
    content = client.videos.download_content(video.id).content
    assert content[4:8] == b"ftyp"


def test_the_model_is_listed(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("mochi-1", "model", "genmo")
    assert client.models.retrieve("mochi-1") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


def test_our_parameters_go_beside_theirs(server: Stack, client: OpenAI) -> None:
    video = client.videos.create(
        prompt="a pond", seconds="2", extra_body={"fps": 10, "steps": 11, "seed": 7}  # type: ignore[arg-type]
    )  # fmt: skip
    params = server.record(video.id)["params"]
    for given in ('"frames":20', '"fps":10.0', '"steps":11', '"seed":7'):
        assert given in params
    assert video.model_extra
    assert video.model_extra["seed"] == 7


def test_the_same_requests_are_found_on_the_other_routes(server: Stack) -> None:
    key = server.key()
    with open_client(server, key) as client:
        video = client.videos.create(prompt="a pond", **SHORT)
        poll(client, video)
        result = server.http(key).get(f"/v2/requests/{video.id}").json()
        assert result["status"] == "COMPLETED"
        content = client.videos.download_content(video.id).content
        assert content == httpx2.get(result["output"]).content


def test_all_of_a_keys_requests_are_listed_page_by_page(server: Stack, client: OpenAI) -> None:
    ids = [client.videos.create(prompt="a pond", **SHORT).id for _ in range(5)]
    assert [video.id for video in client.videos.list()] == ids[::-1]
    assert [video.id for video in client.videos.list(limit=2)] == ids[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == ids
    page = client.videos.list(limit=2, after=ids[3])
    assert [video.id for video in page.data] == [ids[2], ids[1]]
    with open_client(server, server.key()) as other:
        assert list(other.videos.list()) == []
        with pytest.raises(openai.NotFoundError):
            other.videos.list(after=ids[0])


def test_a_deleted_video_is_gone_everywhere(server: Stack) -> None:
    key = server.key()
    with open_client(server, key) as client:
        video = client.videos.create(prompt="a pond", **SHORT)
        poll(client, video)
        link = server.http(key).get(f"/v2/requests/{video.id}").json()["output"]
        deleted = client.videos.delete(video.id)
        assert (deleted.id, deleted.deleted) == (video.id, True)
        assert list(client.videos.list()) == []
        asks: tuple[Callable[[str], object], ...] = (
            client.videos.retrieve,
            client.videos.download_content,
            client.videos.delete,
        )
        for ask in asks:
            with pytest.raises(openai.NotFoundError, match=video.id):
                ask(video.id)
    assert httpx2.get(link).status_code == 404
    assert not any(video.id in name for name in server.outputs())


def test_a_video_that_is_being_made_can_be_deleted(server: Stack, client: OpenAI) -> None:
    video = client.videos.create(prompt="a pond", **SHORT, extra_headers={SCENARIO: "slow:3000"})
    eventually(lambda: client.videos.retrieve(video.id).status == "in_progress")
    client.videos.delete(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert eventually(lambda: not server.record(video.id))
    assert poll(client, client.videos.create(prompt="a pond", **SHORT)).status == "completed"


def test_a_failure_is_a_state_and_no_error(client: OpenAI) -> None:
    video = client.videos.create(prompt="a pond", **SHORT, extra_headers={SCENARIO: "blocked"})
    failed = poll(client, video)
    assert (failed.status, failed.completed_at) == ("failed", None)
    assert failed.expires_at
    assert failed.error
    assert failed.error.code == "content_blocked"
    assert "Moderation has blocked" in failed.error.message
    with pytest.raises(openai.NotFoundError, match="it failed: Moderation"):
        client.videos.download_content(video.id)


def test_a_video_that_is_not_ready_has_no_content(client: OpenAI) -> None:
    video = client.videos.create(prompt="a pond", **SHORT, extra_headers={SCENARIO: "slow:3000"})
    with pytest.raises(openai.NotFoundError, match="until it is completed"):
        client.videos.download_content(video.id)
    client.videos.delete(video.id)


def test_what_is_no_video_is_told_to_be_lacking(client: OpenAI) -> None:
    said = "This server has no {}, which the OpenAI API has: it makes videos from text"
    with pytest.raises(openai.NotFoundError, match=said.format("chat")):
        client.chat.completions.create(model="mochi-1", messages=[])
    with pytest.raises(openai.NotFoundError, match=said.format("images")):
        client.images.generate(model="mochi-1", prompt="a pond")


def test_a_bad_key_and_a_foreign_video_are_told_in_our_words(server: Stack, client: OpenAI) -> None:
    video = client.videos.create(prompt="a pond", **SHORT)
    # From an address of its own, as bad keys are counted.
    transport = httpx2.HTTPTransport(local_address=another_address(), verify=False)
    guesser = OpenAI(
        api_key="bad",
        base_url=f"{server.url}/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )
    with guesser, pytest.raises(openai.AuthenticationError, match="Invalid API key"):
        guesser.videos.retrieve(video.id)
    with open_client(server, server.key()) as other, pytest.raises(openai.NotFoundError) as error:
        other.videos.retrieve(video.id)
    assert f"Request {video.id} not found" in str(error.value)
    reader = open_client(server, server.key(scopes=[Scope.READ]))
    with reader, pytest.raises(openai.PermissionDeniedError, match="generate"):
        reader.videos.create(prompt="a pond")


@pytest.mark.parametrize(
    ("given", "status", "text"),
    [
        ({"size": "1280x720"}, 400, "`size` must be 848x480"),
        ({"seconds": "12"}, 400, "`seconds` must be from 0.0625 to 10 at 16 frames a second"),
        ({"seconds": "soon"}, 400, "`seconds` must be a number"),
        ({"model": "sora-2"}, 404, "The model is `mochi-1`"),
        ({"prompt": " "}, 400, "`prompt` must not be blank"),
        (
            {"input_reference": ("a.png", b"picture")},
            400,
            "Mochi 1 makes videos from text. Send no files",
        ),
        ({"extra_body": {"seconds": "1", "frames": 7}}, 400, "not both"),
        ({"extra_body": {"steps": "some"}}, 400, "`steps` must be a whole number"),
    ],
)
def test_what_mochi_cannot_make_is_refused(
    client: OpenAI, given: dict[str, Any], status: int, text: str
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.videos.create(**{"prompt": "a pond", **given})
    assert error.value.status_code == status
    assert text in str(error.value)
