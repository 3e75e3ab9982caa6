"""Bodies that are unusual and taken, and what the result says of names that were ignored."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import refusal

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
JSON = {"content-type": "application/json"}
SUBMITS = ["/v1/mochi-1", "/v2/mochi-1"]


def result(stack: Stack, body: bytes) -> dict[str, Any]:
    """Of a request with this body, when it has ended."""
    client = stack.http()
    submitted = client.post("/v2/mochi-1", content=body, headers=JSON)
    assert submitted.status_code == 200, submitted.text
    url = submitted.json()["response_url"]
    eventually(lambda: client.get(url).json()["status"] == "COMPLETED")
    answer: dict[str, Any] = client.get(url).json()
    return answer


def test_a_byte_order_mark_before_json_is_ignored(server: Stack) -> None:
    assert result(server, b"\xef\xbb\xbf" + json.dumps(POND).encode())["prompt"] == "a pond"


@pytest.mark.parametrize("path", [*SUBMITS, "/v1/videos"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
def test_a_compressed_body_is_refused_with_the_reason(
    server: Stack, path: str, encoding: str
) -> None:
    body = gzip.compress(json.dumps(POND).encode())
    answer = server.http().post(path, content=body, headers=JSON | {"content-encoding": encoding})
    error = answer.json()["error"]
    assert answer.status_code == 415
    assert "`Content-Encoding`" in (error if isinstance(error, str) else error["message"])


def test_an_encoding_that_changes_nothing_is_taken(server: Stack) -> None:
    headers = {"content-encoding": "identity"}
    assert server.http().post("/v2/mochi-1", json=POND, headers=headers).is_success


def test_the_result_names_what_was_ignored_and_what_was_meant(server: Stack) -> None:
    body = POND | {"num_frames": 9, "base64": True, "\ud800": 1}
    assert result(server, json.dumps(body).encode())["warnings"][:3] == [
        "`num_frames` is unknown and was ignored; did you mean `frames`?",
        "`base64` is unknown and was ignored",
        "`?` is unknown and was ignored",
    ]


@pytest.mark.parametrize("path", [*SUBMITS, "/v1/videos"])
def test_an_unknown_name_in_the_query_is_told_as_one_in_the_body(server: Stack, path: str) -> None:
    client = server.http()
    query = {"dryrun": "true", "steps": "20", "webhook_url": "", "odd": ["1", "2"], "a\nb": ""}
    answer = client.post(path, json=POND | {"odd": 1, "draft_step": 2}, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ignored-parameters"] == "odd, draft_step, dryrun, steps, a%0Ab"
    is_video = answer.headers["content-type"] == "video/mp4"
    body = {"id": answer.headers["x-request-id"]} if is_video else answer.json()
    url = f"/v2/requests/{body.get('id') or body['request_id']}"
    eventually(lambda: client.get(url).json()["status"] == "COMPLETED")
    assert client.get(url).json()["warnings"][:6] == [
        "`odd` is unknown and was ignored",
        "`draft_step` is unknown and was ignored; did you mean `draft_steps`?",
        "`dryrun` in the query is unknown and was ignored; did you mean `dry_run`?",
        "`steps` in the query was ignored: it belongs into the body",
        "`odd` in the query is unknown and was ignored",
        "`a\nb` in the query is unknown and was ignored",
    ]


def test_the_videos_route_takes_the_names_of_other_servers(server: Stack) -> None:
    client = server.http()
    named = {"num_frames": 9, "num_inference_steps": 10, "guidance": 3}
    as_json = client.post("/v1/videos", json={"prompt": "a pond", **named})
    parts = {name: (None, str(value)) for name, value in {"prompt": "a pond", **named}.items()}
    as_form = client.post("/v1/videos", files=parts)
    for answer in (as_json, as_form):
        assert "x-ignored-parameters" not in answer.headers
        params = json.loads(server.record(answer.json()["id"])["params"])
        assert (params["frames"], params["steps"], params["guidance_scale"]) == (9, 10, 3)
    both = client.post("/v1/videos", json={**POND, "num_frames": 9})
    assert both.json()["error"]["message"] == "Give `num_frames` or `frames`, not both."
    assert refusal(client.post("/v2/mochi-1", json={"prompt": 1, "num_frames": 9}), 400)


@pytest.mark.parametrize("path", [*SUBMITS, "/v1/videos"])
def test_a_form_of_either_kind_is_taken_as_json_is(server: Stack, path: str) -> None:
    client = server.http()
    fields = {"prompt": "café & pond", "frames": "1", "steps": "10", "fps": "7.5", "seed": "-1"}
    multipart = {name: (None, value) for name, value in fields.items()}
    for answer in (client.post(path, data=fields), client.post(path, files=multipart)):
        assert answer.status_code == 200, answer.text
        is_video = answer.headers["content-type"] == "video/mp4"
        body = {"id": answer.headers["x-request-id"]} if is_video else answer.json()
        params = json.loads(server.record(body.get("id") or body["request_id"])["params"])
        assert params["prompt"] == "café & pond"
        assert (params["frames"], params["steps"], params["fps"]) == (1, 10, 7.5)
        assert params["seed"] >= 0


def test_null_is_the_default_of_an_optional_field_and_text_may_be_a_number(server: Stack) -> None:
    optional = ["negative_prompt", "guidance_scale", "fps", "frames", "steps", "seed"]
    nulls = dict.fromkeys([*optional, "webhook_url", "x-mock-scenario"])
    answer = server.http().post(
        "/v2/mochi-1", json={"prompt": "a pond", **nulls, "steps": "10", "guidance_scale": "3"}
    )
    assert answer.status_code == 200, answer.text
    assert "x-ignored-parameters" not in answer.headers
    params = json.loads(server.record(answer.json()["request_id"])["params"])
    assert (params["frames"], params["steps"], params["guidance_scale"]) == (52, 10, 3)
    unknown = server.http().post("/v2/mochi-1", json=POND | {"odd": None})
    assert unknown.headers["x-ignored-parameters"] == "odd"


def test_an_empty_field_of_a_form_is_its_default(server: Stack) -> None:
    fields = {"prompt": "a pond", "seed": "", "fps": "", "negative_prompt": "", "steps": "10"}
    answer = server.http().post("/v2/mochi-1", data=fields)
    assert answer.status_code == 200, answer.text
    params = json.loads(server.record(answer.json()["request_id"])["params"])
    assert (params["seed"], params["fps"], params["steps"]) == (985521, 16, 10)


@pytest.mark.parametrize("charset", ["punycode", "hex", "utf-7", "unicode_escape"])
def test_the_charset_of_a_form_chooses_no_codec(server: Stack, charset: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%b\r\n--x--\r\n'
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = server.http().post("/v2/mochi-1", content=part % b"+AOk- 6f \\n", headers=kind)
    params = json.loads(server.record(answer.json()["request_id"])["params"])
    assert params["prompt"] == "+AOk- 6f \\n"
    refused = server.http().post("/v2/mochi-1", content=part % b"\xff", headers=kind)
    assert "not UTF-8" in refusal(refused, 400)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": None}, "`prompt` must be"),
        ({"prompt": "a", "steps": "9"}, "`steps` must be a whole number from 10 to 75; got 9."),
        ({"prompt": "a", "steps": "10.5"}, "`steps` must be a whole number"),
        ({"prompt": "a", "steps": ""}, "`steps` must be a whole number"),
        ({"prompt": "a", "steps": " 10"}, "`steps` must be a whole number"),
        ({"prompt": "a", "steps": "1e1"}, "`steps` must be a whole number"),
        ({"prompt": "a", "steps": "\u0661\u0660"}, "`steps` must be a whole number"),
        ({"prompt": "a", "fps": "nan"}, "`fps` must be a number from 7 to 30"),
        ({"prompt": "a", "seed": "9" * 20}, "`seed` must be a whole number"),
        ({"prompt": "a", "frames": True}, "`frames` must be a whole number"),
    ],
)
def test_nothing_else_loosens(server: Stack, body: dict[str, Any], says: str) -> None:
    assert says in refusal(server.http().post("/v2/mochi-1", json=body), 400)


ALL_WRONG = {
    "prompt": "a pond",
    "fps": 31,
    "steps": 9,
    "draft_steps": 99,
    "count": 9,
    "lora": "sepia",
    "webhook_url": "ftp://receiver.test",
    "x-mock-scenario": "nap",
}


def test_one_refusal_names_all_that_is_wrong(server: Stack) -> None:
    answer = server.http().post("/v2/mochi-1", json=ALL_WRONG)
    text = refusal(answer, 400)
    wrong = answer.json()["parameters"]
    assert wrong.keys() == ALL_WRONG.keys() - {"prompt"}
    assert text == " ".join(wrong.values())
    assert wrong["draft_steps"].startswith("`draft_steps` must be a whole number from 1 to 74, few")
    assert wrong["lora"].startswith("`lora`: no live worker has ")


@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v1/videos"])
def test_so_does_a_route_that_takes_no_drafts(server: Stack, path: str) -> None:
    answer = server.http().post(path, json=ALL_WRONG)
    assert answer.status_code == 400
    assert all(f"`{name}`" in answer.text for name in ALL_WRONG.keys() - {"prompt"})
    error = answer.json()["error"]
    text = error if isinstance(error, str) else error["message"]
    assert text.count("works only with POST /v2/mochi-1") == 2


def test_without_a_prompt_the_rest_is_checked_too(server: Stack) -> None:
    answer = server.http().post("/v2/mochi-1", json={"steps": 12, "draft_steps": 12, "count": 2})
    assert answer.json()["parameters"].keys() == {"prompt", "draft_steps"}
    assert "from 1 to 11, fewer than `steps`; got 12." in refusal(answer, 400)


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("application/x-www-form-urlencoded", b"prompt=a&prompt=b", "a field twice"),
        ("application/x-www-form-urlencoded", b"prompt=%ff", "not UTF-8"),
        ("application/x-www-form-urlencoded", b"prompt=\xff", "not UTF-8"),
        ("application/x-www-form-urlencoded", b"a=1&" * 101, "more than 100 fields"),
        ("application/x-www-form-urlencoded", b"", "`prompt` is required"),
        ("application/x-www-form-urlencoded", b"&&==&", "`prompt` is required"),
        ("multipart/form-data; boundary=x", b"nonsense", "not a form"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nc\r\n--x--\r\n',
            "Send no files",
        ),
    ],
)
@pytest.mark.parametrize("path", SUBMITS)
def test_a_form_that_is_wrong_says_what_is(
    server: Stack, path: str, content_type: str, body: bytes, says: str
) -> None:
    answer = server.http().post(path, content=body, headers={"content-type": content_type})
    assert says in refusal(answer, 400)


@pytest.mark.parametrize("path", SUBMITS)
def test_a_slash_at_the_end_of_a_path_changes_nothing(server: Stack, path: str) -> None:
    client = server.http()
    answer = client.post(f"{path}/", json=POND)
    assert answer.status_code == 200, answer.text
    assert client.get("/v1/videos/").status_code == 200
    assert refusal(client.get("/v1/nothing/"), 404)
    assert refusal(client.post(f"{path}//", json=POND), 404)


@pytest.mark.parametrize("path", SUBMITS)
def test_json_that_curl_sends_as_a_form_is_told_which_header_is_missing(
    server: Stack, path: str
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = server.http().post(path, content=json.dumps(POND), headers=form)
    assert "`content-type: application/json`" in refusal(answer, 406)
