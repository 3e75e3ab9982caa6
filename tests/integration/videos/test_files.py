"""Formats and stills through gateway and worker: bodies, links, types, ranges, and their end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import pytest
from PIL import Image

from models.request.params import HEIGHT, WIDTH
from tests.support.stack import Stack, eventually
from tests.support.wire import ended, refusal

POND: dict[str, Any] = {"prompt": "a pond", "frames": 5, "steps": 10}
TYPES = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
CODECS = {"mp4": "h264", "webm": "vp9", "gif": "gif"}
ALL: dict[str, Any] = {"format": "webm", "poster": True, "last_frame": True}


def result_of(server: Stack, **files: Any) -> dict[str, Any]:
    """The result of a new request."""
    client = server.http()
    submitted = client.post("/v2/mochi-1", json=POND | files).json()
    return ended(client, submitted["request_id"])


def owner_of(server: Stack, result: dict[str, Any]) -> httpx2.Client:
    """A client of the request's key, which is that of a new one from now on."""
    client = server.http()
    owner = server.owner(str(client.headers["x-api-key"]))
    server.redis.hset(f"mochi:request:{result['request_id']}", "owner", owner)
    return client


def check_video(content: bytes, format_: str) -> None:
    with av.open(io.BytesIO(content), "r") as file:
        found = file.streams.video[0].codec_context
        assert found.name.removeprefix("lib") == CODECS[format_]
        assert (found.width, found.height) == (WIDTH, HEIGHT)
        assert sum(1 for _ in file.decode(video=0)) == POND["frames"]


def check_still(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def made(server: Stack) -> dict[str, Any]:
    return result_of(server, **ALL)


@pytest.mark.parametrize("format_", TYPES)
def test_a_result_its_link_and_a_blocking_call_say_what_the_video_is(
    server: Stack, format_: str
) -> None:
    result = result_of(server, format=format_)
    assert result["warnings"] == []
    assert not {"poster", "last_frame"} & set(result)
    video = result["video"]
    assert video["url"] == result["output"]
    assert video["content_type"] == TYPES[format_]
    assert video["file_name"] == f"{result['request_id']}.{format_}"
    assert result["output"].endswith(f"/{video['file_name']}")
    link = httpx2.get(result["output"])
    assert link.headers["content-type"] == TYPES[format_]
    assert len(link.content) == video["file_size"]
    check_video(link.content, format_)
    blocking = server.http().post("/v1/mochi-1", json=POND | {"format": format_})
    assert blocking.headers["content-type"] == TYPES[format_]
    assert blocking.content == link.content


def test_stills_are_in_the_result_with_links_that_need_no_key(made: dict[str, Any]) -> None:
    for still in ("poster", "last_frame"):
        file = made[still]
        assert file["file_name"] == f"{made['request_id']}-{still}.jpg"
        assert file["url"].endswith(f"/{file['file_name']}")
        answer = httpx2.get(file["url"])
        assert answer.headers["content-type"] == file["content_type"] == "image/jpeg"
        assert len(answer.content) == file["file_size"]
        check_still(answer.content)
    check_video(httpx2.get(made["output"]).content, "webm")


def test_a_still_is_served_in_ranges_too(made: dict[str, Any]) -> None:
    url, size = made["poster"]["url"], made["poster"]["file_size"]
    whole = httpx2.get(url)
    part = httpx2.get(url, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{size}"
    assert whole.headers["etag"] != httpx2.get(made["output"]).headers["etag"]
    assert httpx2.head(url).headers["content-length"] == str(size)
    assert f"{size:,} bytes" in refusal(httpx2.get(url, headers={"range": f"bytes={size}-"}), 416)


@pytest.mark.parametrize("asked", [{}, {"last_frame": True}])
def test_a_still_that_was_not_asked_for_is_not_there(server: Stack, asked: dict[str, Any]) -> None:
    result = result_of(server, **asked)
    for name in ("poster", "other", "poster%00"):
        url = result["output"].replace(".mp4", f"-{name}.jpg")
        text = refusal(httpx2.get(url), 404)
        assert text.endswith("`poster: true` in the submit." if name == "poster" else "not found")


def test_the_poster_is_the_thumbnail_of_other_servers(server: Stack, made: dict[str, Any]) -> None:
    request_id, owner = made["request_id"], owner_of(server, made)
    answer = owner.get(f"/v1/videos/{request_id}/content?variant=thumbnail")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == httpx2.get(made["poster"]["url"]).content
    part = owner.get(
        f"/v1/videos/{request_id}/content?variant=thumbnail", headers={"range": "bytes=0-9"}
    )
    assert (part.status_code, part.content) == (206, answer.content[:10])


def test_without_a_poster_a_thumbnail_is_404_with_the_way_to_have_one(server: Stack) -> None:
    result = result_of(server, last_frame=True)
    url = f"/v1/videos/{result['request_id']}/content"
    client = owner_of(server, result)
    answer = client.get(f"{url}?variant=thumbnail")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == (
        f"Request {result['request_id']} has no poster, as it was not asked for: a request has one "
        "with `poster: true` in the submit."
    )
    other = client.get(f"{url}?variant=spritesheet")
    assert other.status_code == 400
    assert other.json()["error"]["message"] == "`variant` must be `video` or `thumbnail`."


def test_an_altered_signature_opens_no_still(made: dict[str, Any]) -> None:
    folder, signature, name = made["poster"]["url"].rsplit("/", 2)
    for altered in (signature[:-1], signature.swapcase(), "", "*"):
        assert refusal(httpx2.get(f"{folder}/{altered}/{name}"), 404)


def test_a_picture_is_opened_under_a_policy_of_its_own(made: dict[str, Any]) -> None:
    policy = httpx2.get(made["poster"]["url"]).headers["content-security-policy"]
    assert policy.endswith("; img-src 'self'; style-src 'unsafe-inline'")


@pytest.mark.parametrize("as_form", [True, False])
def test_a_form_asks_for_files_with_texts(server: Stack, *, as_form: bool) -> None:
    texts = {name: str(value).lower() for name, value in (POND | ALL).items()}
    client = server.http()
    options: dict[str, Any] = {"data": texts} if as_form else {"json": texts}
    answer = client.post("/v1/mochi-1", **options)
    assert answer.headers["content-type"] == "video/webm"
    result = client.get(f"/v2/requests/{answer.headers['x-request-id']}").json()
    assert {"poster", "last_frame"} < set(result)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"format": "avi"}, '`format` must be `mp4`, `webm` or `gif`; got "avi".'),
        ({"poster": "yes"}, '`poster` must be true or false; got "yes".'),
        ({"last_frame": 1}, "`last_frame` must be true or false; got 1."),
    ],
)
@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v2/mochi-1", "/v2/mochi-1?dry_run=true"])
def test_what_is_no_file_of_ours_is_400(
    server: Stack, path: str, wrong: dict[str, Any], said: str
) -> None:
    answer = server.http().post(path, json=POND | wrong)
    assert said in refusal(answer, 400)
    assert set(answer.json()["parameters"]) == set(wrong)


def test_the_sdk_gets_the_files(server: Stack) -> None:
    result = server.sdk().run("mochi-1", **POND, **ALL)
    check_video(httpx2.get(result["output"]).content, "webm")
    check_still(httpx2.get(result["last_frame"]["url"]).content)
    check_video(server.sdk().run_sync("mochi-1", **POND, format="gif").content, "gif")


def test_the_videos_api_serves_the_format_that_was_asked_for(server: Stack) -> None:
    client = server.http()
    video = client.post("/v1/videos", json=POND | {"format": "gif", "poster": True}).json()
    eventually(lambda: client.get(f"/v1/videos/{video['id']}").json()["status"] == "completed")
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "image/gif"
    check_video(content.content, "gif")


def test_who_asks_for_no_files_gets_records_and_histories_without_them(server: Stack) -> None:
    result = result_of(server)
    assert set(result) == {
        *("status", "request_id", "error", "output", "video", "seed", "prompt", "metrics"),
        *("warnings", "expires_at"),
    }
    record = server.record(result["request_id"])
    for text in (record["params"], record["history_params"]):
        assert not [name for name in ("format", "poster", "last_frame") if name in text]


def test_a_worker_that_knows_no_formats_is_not_believed_to_have_made_one(server: Stack) -> None:
    """Its record has an MP4 and no still, whatever the parameters say."""
    result = result_of(server)
    record = f"mochi:request:{result['request_id']}"
    params = str(server.redis.hget(record, "params"))
    server.redis.hset(record, "params", params[:-1] + ',"format":"webm","poster":true}')
    client = owner_of(server, result)
    now = client.get(f"/v2/requests/{result['request_id']}").json()
    assert now["video"] == result["video"]
    assert "poster" not in now
    thumbnail = client.get(f"/v1/videos/{result['request_id']}/content?variant=thumbnail")
    assert "a worker of an earlier release ran it: submit it again." in thumbnail.text
    assert now["warnings"] == [
        "The worker that made the video is of an earlier release: it ignored `format` and `poster`."
    ]


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["-o", "pond.webm"], ["pond.webm"]),
        (
            ["--poster", "--last-frame", "--format", "gif", "-o", "pond.gif"],
            ["pond-last-frame.jpg", "pond-poster.jpg", "pond.gif"],
        ),
    ],
)
def test_generate_writes_the_files_side_by_side(
    server: Stack, tmp_path: Path, options: list[str], files: list[str]
) -> None:
    *options, name = options
    done = server.run(
        *("generate", "a pond", "--frames", "5", "--steps", "10", *options, str(tmp_path / name)),
        MOCHI_URL=server.url,
        MOCHI_API_KEY=server.key(),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert "whatever" not in done.stderr
    for path in tmp_path.iterdir():
        if path.suffix == ".jpg":
            check_still(path.read_bytes())
        else:
            check_video(path.read_bytes(), path.suffix[1:])


def test_generate_overwrites_no_picture_and_says_what_the_video_is(
    server: Stack, tmp_path: Path
) -> None:
    (tmp_path / "pond-poster.jpg").write_text("mine")
    done = server.run(
        *("generate", "a pond", "--frames", "5", "--steps", "10", "--poster"),
        *("--format", "webm", "-o", str(tmp_path / "pond.mp4")),
        MOCHI_URL=server.url,
        MOCHI_API_KEY=server.key(),
    )
    assert done.returncode == 0, done.stderr
    assert "It is a WebM, whatever pond.mp4 ends with." in done.stderr
    assert (tmp_path / "pond-poster.jpg").read_text() == "mine"
    check_still((tmp_path / "pond-poster-2.jpg").read_bytes())


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Stack]:
    """A gateway and a worker that keep nothing for long."""
    settings = {"engine": "fake", "fake_step_seconds": "0.01", "retention_seconds": "2"}
    with Stack(tmp_path, **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def test_all_files_go_with_the_record(hasty: Stack) -> None:
    made = result_of(hasty, **ALL)
    assert len(hasty.outputs()) == 3
    eventually(lambda: hasty.outputs() == [], seconds=15)
    assert refusal(httpx2.get(made["poster"]["url"]), 404)


def test_deleting_a_request_takes_all_its_files(server: Stack) -> None:
    client = server.http()
    answer = client.post("/v1/mochi-1", json=POND | ALL)
    request_id = answer.headers["x-request-id"]

    def files() -> list[str]:
        return [name for name in server.outputs() if name.startswith(request_id)]

    assert len(files()) == 3
    assert client.delete(f"/v1/videos/{request_id}").is_success
    assert files() == []
