"""`/v1/videos` over plain HTTP: JSON, forms, ranges, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import refusal as plain_refusal

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}


def refusal(answer: httpx2.Response, status: int) -> str:
    """The text of an error, which has another shape on these routes."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "code"}
    assert error["code"] == status
    return str(error["message"])


def form(fields: dict[str, str]) -> dict[str, Any]:
    """What httpx2 sends as a form in parts."""
    return {"files": {name: (None, value) for name, value in fields.items()}}


def test_json_and_a_form_mean_the_same(server: Stack) -> None:
    client = server.http()
    text = {name: str(value) for name, value in POND.items()}
    for sent in ({"json": {**POND, "fps": 23.976}}, form({**text, "fps": "23.976"})):
        answer = client.post("/v1/videos", **sent)
        assert answer.status_code == 200, answer.text
        params = server.record(answer.json()["id"])["params"]
        assert '"frames":1,"steps":10' in params
        assert '"fps":23.976' in params


@pytest.mark.parametrize("seconds", [2, 2.0, "2", "2.0"])
def test_seconds_become_frames(server: Stack, seconds: object) -> None:
    body = {"prompt": "a pond", "steps": 10, "fps": 7.5, "seconds": seconds}
    answer = server.http().post("/v1/videos", json=body)
    assert answer.json()["seconds"] == "2"
    assert '"frames":15' in server.record(answer.json()["id"])["params"]


@pytest.mark.parametrize("seconds", [True, [], "", "1e3", "nan", "-1", 0, 10**400, 1e300])
def test_what_is_no_length_is_400(server: Stack, seconds: object) -> None:
    body = {"prompt": "a pond", "seconds": seconds}
    assert "`seconds` must be" in refusal(server.http().post("/v1/videos", json=body), 400)


def test_unknown_names_are_ignored_and_named(server: Stack) -> None:
    answer = server.http().post("/v1/videos", json={**POND, "model": "mochi-1", "quality": "high"})
    assert answer.headers["x-ignored-parameters"] == "quality"


def test_an_idempotency_key_holds_here_too(server: Stack) -> None:
    client = server.http()
    headers = {"Idempotency-Key": "one"}
    first = client.post("/v1/videos", json=POND, headers=headers)
    again = client.post("/v1/videos", json=POND, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert client.delete(f"/v1/videos/{first.json()['id']}").is_success
    assert client.post("/v1/videos", json=POND, headers=headers).json()["id"] != first.json()["id"]


def test_content_comes_in_ranges(server: Stack) -> None:
    client = server.http()
    url = f"/v1/videos/{client.post('/v1/videos', json=POND).json()['id']}"
    eventually(lambda: client.get(url).json()["status"] == "completed")
    whole = client.get(f"{url}/content")
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["cache-control"] == "no-store"
    part = client.get(f"{url}/content", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    far = client.get(f"{url}/content", headers={"range": "bytes=99999999-"})
    assert far.status_code == 416
    assert "`variant`" in refusal(client.get(f"{url}/content?variant=sprites"), 400)
    assert httpx2.get(f"{server.url}{url}/content").status_code == 401


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=", "order=up"])
def test_a_bad_page_is_400(server: Stack, query: str) -> None:
    assert "must be" in refusal(server.http().get(f"/v1/videos?{query}"), 400)


def test_errors_of_every_kind_have_this_shape_here_and_nowhere_else(server: Stack) -> None:
    client = server.http()
    assert "Missing" in refusal(httpx2.get(f"{server.url}/v1/videos"), 401)
    assert "Wrong verb" in refusal(client.patch("/v1/videos"), 405)
    assert "no such path" in refusal(client.get("/v1/videos/1/2/3"), 404)
    assert "not found" in refusal(client.get("/v1/videos/1"), 404)
    plain_refusal(client.get("/v1/videosque"), 404)
    plain_refusal(client.post("/v2/mochi-1", json={}), 400)


def test_an_empty_list_is_a_list(server: Stack) -> None:
    assert server.http().get("/v1/videos").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=", b"", 400),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nno name\r\n--x--\r\n", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a", 400),
        ("multipart/form-data; boundary=x; charset=odd", b"--x\r\n", 400),
        ("multipart/form-data; boundary=\xff", b"--x\r\n", 400),
        ("application/x-www-form-urlencoded", b"prompt=%ff", 400),
        ("", b"{}", 406),
    ],
)
def test_what_is_no_form_is_4xx(server: Stack, kind: str, content: bytes, status: int) -> None:
    answer = server.http().post(
        "/v1/videos", content=content, headers=[(b"content-type", kind.encode("latin-1"))]
    )
    refusal(answer, status)


def test_hostile_forms_are_4xx(server: Stack) -> None:
    client = server.http()
    twice = {"files": [("prompt", (None, "a")), ("prompt", (None, "b"))]}
    assert "twice" in refusal(client.post("/v1/videos", **twice), 400)  # type: ignore[arg-type]
    many = form({f"name{number}": "" for number in range(200)})
    refusal(client.post("/v1/videos", **many), 400)
    long = form({"prompt": "a" * 200_000})
    assert "limit" in refusal(client.post("/v1/videos", **long), 413)
    digits = form({"prompt": "a pond", "frames": "9" * 5000})
    refusal(client.post("/v1/videos", **digits), 400)
    file = {"files": {"prompt": ("a.txt", b"a pond")}}
    assert "Send no files" in refusal(client.post("/v1/videos", **file), 400)  # type: ignore[arg-type]
