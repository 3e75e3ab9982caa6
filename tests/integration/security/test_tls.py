"""The gateway with a certificate of its own: HTTPS, and nothing else on that port."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.cli.access import Access
from server.cli.client import Client
from server.errors import ClientError, SettingsError
from server.settings import ServerSettings
from server.transport.connection.tls import tls_context
from tests.support.services.certificates import Certificate
from tests.support.stack import Stack, eventually
from tests.support.up import Up, run
from tests.support.wire import another_gateway, connect, read_answer, refusal

POND = {"prompt": "a pond at night", "frames": 1, "steps": 10}
NO_BROKER = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def url(server: Stack, certificate: Certificate) -> str:
    """Of a gateway with TLS."""
    return another_gateway(server, **certificate.settings)


@pytest.fixture
def client(server: Stack, url: str, certificate: Certificate) -> Iterator[httpx2.Client]:
    """Trusts its CA, and has a key."""
    context = ssl.create_default_context(cafile=certificate.ca)
    with httpx2.Client(base_url=url, verify=context, headers={"x-api-key": server.key()}) as client:
        yield client


def test_a_video_is_asked_for_and_fetched_over_tls(url: str, client: httpx2.Client) -> None:
    assert url.startswith("https://")
    response_url = client.post("/v2/mochi-1", json=POND).json()["response_url"]
    assert response_url.startswith(url)
    result = eventually(lambda: client.get(response_url).json().get("output"))
    assert result.startswith(url)
    assert client.get(result).content[4:8] == b"ftyp"


def test_every_answer_tells_browsers_to_stay_with_tls(url: str, client: httpx2.Client) -> None:
    for path in ("/healthz", "/nowhere", "/docs"):
        assert client.get(path).headers["strict-transport-security"] == "max-age=31536000"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(connect(url)) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        answer = read_answer(connection)
    refusal(answer, 400)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_plain_http_on_the_tls_port_gets_no_response(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP")


def test_our_own_client_is_told_to_use_https(url: str, tmp_path: Path) -> None:
    plain = url.replace("https", "http")
    with pytest.raises(ClientError) as refused:
        Client(Access(plain, "k")).generate(POND, tmp_path / "pond.mp4")
    assert f"If it speaks HTTPS, use {url}" in str(refused.value)
    assert ".." not in str(refused.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_two_versions_that_are_sound_are_spoken(
    url: str, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=certificate.ca)
    context.minimum_version = context.maximum_version = version
    with context.wrap_socket(connect(url), server_hostname="localhost") as connection:
        assert connection.version() == version.name.replace("_", ".")


def test_no_older_version_is_offered(certificate: Certificate) -> None:
    # Not by a connection: OpenSSL's own clients refuse to speak one.
    context = tls_context(ServerSettings.model_validate(certificate.settings))
    assert context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_up_speaks_tls_and_knows_when_it_is_ready(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path / "pem")
    options = ["--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key), "--no-docs"]
    with Up(tmp_path / "data", *options, scheme="https") as up:
        eventually(lambda: f"Ready on {up.url}/v1" in up.log.read_text())
        assert not {"Documents", "Page"} & {*re.findall(r"^\w+", up.log.read_text(), re.MULTILINE)}
        target = tmp_path / "pond.mp4"
        asked = ("generate", "a pond at night", "-o", str(target), "--frames", "1", "--steps", "10")
        here = {"MOCHI_URL": up.url, "MOCHI_DATA_DIR": str(up.folder)}
        refused = run(*asked, **here).stderr
        assert f"The certificate of {up.url} is not trusted" in refused
        assert "SSL_CERT_FILE" in refused
        made = run(*asked, **here, SSL_CERT_FILE=str(certificate.ca))
        assert made.returncode == 0, made.stderr
        assert target.read_bytes()[4:8] == b"ftyp"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that could be meant."""
    folder = tmp_path_factory.mktemp("pem")
    certificate, other = Certificate(folder), Certificate(folder / "other")
    locked = folder / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", certificate.key, "-out", locked,  # noqa: S607
         "-passout", "pass:x"],
        check=True,
    )  # fmt: skip
    (folder / "empty.pem").touch()
    return {
        "cert": certificate.cert,
        "key": certificate.key,
        "other": other.key,
        "locked": locked,
        "empty": folder / "empty.pem",
        "folder": folder,
        "none": folder / "none.pem",
    }


@pytest.mark.parametrize(
    ("cert", "key", "named"),
    [
        ("none", "key", "tls_cert"),
        ("empty", "key", "tls_cert"),
        ("key", "key", "tls_cert"),
        ("folder", "key", "tls_cert"),
        ("cert", "none", "tls_key"),
        ("cert", "empty", "tls_key"),
        ("cert", "cert", "tls_key"),
        ("cert", "other", "tls_key"),
        ("cert", "locked", "tls_key"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_variable(
    pem: dict[str, Path], cert: str, key: str, named: str
) -> None:
    settings = ServerSettings(tls_cert=str(pem[cert]), tls_key=str(pem[key]))
    with pytest.raises(SettingsError) as error:
        tls_context(settings)
    path = pem[{"tls_cert": cert, "tls_key": key}[named]]
    assert str(error.value).startswith(f"MOCHI_{named.upper()}: {path} cannot be used: ")


def test_a_bad_file_stops_the_start(pem: dict[str, Path], tmp_path: Path) -> None:
    options = ["--tls-cert", str(pem["cert"]), "--tls-key", str(pem["other"]), "--port", "0"]
    for command in (
        ["gateway", "--redis-url", NO_BROKER],
        ["up", "--data-dir", str(tmp_path / "d")],
    ):
        refused = run(*command, *options, MOCHI_ENGINE="fake")
        assert refused.returncode == 78
        assert "MOCHI_TLS_KEY: " in refused.stderr
    assert not (tmp_path / "d").exists()  # no broker was started


def test_one_file_alone_stops_the_start(pem: dict[str, Path]) -> None:
    refused = run("gateway", "--redis-url", NO_BROKER, "--tls-cert", str(pem["cert"]))
    assert refused.returncode == 78
    assert "Set both MOCHI_TLS_CERT and MOCHI_TLS_KEY, or neither." in refused.stderr
