"""Node.js under `mochi-server wrap`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.clients.wrap.wrapped import BODY, Wrapped
from tests.support.stack import Stack

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")


def test_every_node_reaches_the_local_server_by_fetch_and_by_https(
    server: Stack, folder: Path
) -> None:
    code = f"""
import https from "node:https";
import http from "node:http";
const url = "https://api.segmind.com/v1/mochi-1", body = JSON.stringify({json.dumps(BODY)});
const headers = {{"x-api-key": process.env.SEGMIND_API_KEY, "content-type": "application/json"}};
const show = (status, bytes) => console.log(status, bytes.subarray(4, 8).toString());
const response = await fetch(url, {{ method: "POST", headers, body }});
show(response.status, Buffer.from(await response.arrayBuffer()));
await new Promise((done) => https.request(url, {{ method: "POST", headers }}, (answer) => {{
  const chunks = [];
  answer.on("data", (chunk) => chunks.push(chunk));
  answer.on("end", () => done(show(answer.statusCode, Buffer.concat(chunks))));
}}).end(body));
const plain = "http://api.segmind.com/version";
console.log((await fetch(plain)).status, (await fetch(process.env.MOCHI_URL + "/version")).status);
const answer = await new Promise((done) => http.get(plain, done));
console.log(answer.resume().statusCode);  // unread, it would keep the program alive
console.log(process.title);
"""
    call = ("node", "--input-type=module", "-e", code)
    done = Wrapped(server, folder, *call, NODE_OPTIONS="--title=mine")
    told = ["200 ftyp", "200 ftyp", "200 200", "200", "mine"]
    assert (done.status, done.output.splitlines(), done.errors) == (0, told, "")


def test_other_hosts_are_refused_to_node_too(server: Stack, folder: Path) -> None:
    code = """
import https from "node:https";
for (const url of ["https://example.com/", "http://example.com/"])
  await fetch(url).then(console.log, () => {});
https.get("https://example.com/", console.log).on("error", () => {});
"""
    done = Wrapped(server, folder, "node", "--input-type=module", "-e", code)
    assert (done.status, done.output) == (0, "")
    assert "3 refused connections: example.com (3)." in done.errors
