"""The script that leads an older Node.js through the proxy of `wrap`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from threading import Thread

import pytest

from server.cli.hosted.wrap import NODE_PROXY

NODE = shutil.which("node") or ""
pytestmark = pytest.mark.skipif(not NODE, reason="needs Node.js")
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"


CALLS = {
    "fetch": "fetch('{}').catch(({{ cause }}) => console.log(cause))",
    "https": "require('https').get('{}').on('error', console.log)",
}


def asked_of_proxy(call: str, url: str, **environ: str) -> str:
    """What a program asks of its proxy that calls the URL, and may not."""
    heads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(1000).decode())
                connection.sendall(FORBIDDEN)

        thread = Thread(target=refuse, daemon=True)
        thread.start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environ |= {"PATH": os.environ["PATH"], "HTTPS_PROXY": proxy, "NODE_USE_ENV_PROXY": "1"}
        done = subprocess.run(
            [NODE, f"--require={NODE_PROXY}", "-e", CALLS[call].format(url)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "403" in done.stdout
        thread.join(60)
    return heads[0].partition("\r\n")[0]


@pytest.mark.parametrize("call", CALLS)
def test_an_address_of_ipv6_is_asked_for_in_brackets(call: str) -> None:
    line = asked_of_proxy(call, "https://[2001:db8::1]/", NO_PROXY="localhost,127.0.0.1,::1")
    assert line == "CONNECT [2001:db8::1]:443 HTTP/1.1"


@pytest.mark.parametrize("call", CALLS)
def test_a_child_without_no_proxy_is_led(call: str) -> None:
    line = asked_of_proxy(call, "https://example.com/")
    assert line == "CONNECT example.com:443 HTTP/1.1"
