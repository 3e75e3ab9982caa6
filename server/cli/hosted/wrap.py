"""`mochi-server wrap`: run a program whose calls to the hosted API reach a local server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from models.errors import INSTALL
from server.cli.access import Access, ApiKeyOption, ServerUrl
from server.cli.hosted.proxy import Proxy, Target
from server.cli.options import exit_on_error, fail, settings_options
from server.errors import visible
from server.paths import HOSTED_NAMES

PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
"""Of OpenSSL, httpx and httpx2; of requests; of curl; of Node.js."""
NODE_PROXY = Path(__file__).with_name("node_proxy.cjs")
NOT_PROXIED = "localhost,127.0.0.1,::1"
PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
TYPED = {signal.SIGINT, signal.SIGQUIT}
"""A terminal sends them to all processes in its foreground."""
NOT_FOUND, NOT_EXECUTABLE, BY_SIGNAL = 127, 126, 128
"""Exit statuses of shells."""


@settings_options("data_dir")
def wrap(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="The program and its arguments.")
    ],
    url: ServerUrl = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Run a program whose calls to the hosted API reach a local server.

    Calls to any other host are refused. The program has the key as SEGMIND_API_KEY. Links in
    responses begin with the hosted address: to open one in a browser, put your server's address in
    its place.

    Example: `mochi-server wrap -- python client.py`

    A call as the hosted documents have it: `mochi-server wrap -- curl https://api.segmind.com/…`
    """
    if find_spec("trustme") is None:
        fail(f"wrap needs the package trustme. Type: {INSTALL} '.[wrap]'", os.EX_CONFIG)
    with exit_on_error():
        access = Access.of(url, api_key)
        target = Target.of(access.url)
    raise typer.Exit(asyncio.run(_run(command, target, access.api_key)))


async def _run(command: list[str], target: Target, key: str) -> int:
    """Run the command behind a proxy of its own; its exit status, as a shell gives it."""
    import trustme  # noqa: PLC0415 (an extra)

    signals: asyncio.Queue[int] = asyncio.Queue()
    for each in PASSED_ON:
        if signal.getsignal(each) is not signal.SIG_IGN:  # the command ignores it, too
            asyncio.get_running_loop().add_signal_handler(each, signals.put_nowait, each)
    authority = trustme.CA(organization_name="mochi-server wrap")
    proxy = Proxy(target, key, authority, _say)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    with TemporaryDirectory(prefix="mochi-server-wrap-") as folder:
        ca_file = Path(folder, "ca.pem")
        authority.cert_pem.write_to_path(ca_file)  # its private key stays in this process
        own = variables(server.sockets[0].getsockname()[1], ca_file, key)
        try:
            process = await asyncio.create_subprocess_exec(*command, env=os.environ | own)
        except OSError as error:
            _say(f"mochi-server wrap: {command[0]} cannot be run: {error.strerror}.")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        passing = asyncio.create_task(_pass_on(signals, process))
        status = await process.wait()
        passing.cancel()
    _report(proxy, command[0])
    return status if status >= 0 else BY_SIGNAL - status


def variables(port: int, ca_file: Path, key: str) -> dict[str, str]:
    """What leads a program to the proxy on this port."""
    proxy = f"http://127.0.0.1:{port}"
    return {
        **{name: proxy for each in PROXY_VARIABLES for name in (each, each.lower())},
        **dict.fromkeys(("NO_PROXY", "no_proxy"), NOT_PROXIED),
        **dict.fromkeys(CA_VARIABLES, str(ca_file)),
        "NODE_USE_ENV_PROXY": "1",  # and for a Node.js that does not know it:
        "NODE_OPTIONS": f"{os.environ.get('NODE_OPTIONS', '')} --require={_quoted(NODE_PROXY)}",
        "SEGMIND_API_KEY": key,
    }


def _quoted(path: Path) -> str:
    """As Node.js reads its options: in quotes, with backslashes before quotes and backslashes."""
    return json.dumps(str(path), ensure_ascii=False)


async def _pass_on(signals: asyncio.Queue[int], process: asyncio.subprocess.Process) -> None:
    while True:
        number = await signals.get()
        if number in TYPED and _is_in_foreground():
            continue  # the command has it already
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _is_in_foreground() -> bool:
    try:
        with Path(os.ctermid()).open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # there is no terminal
        return False


def _report(proxy: Proxy, program: str) -> None:
    if proxy.refused:
        hosts = ", ".join(f"{host} ({number})" for host, number in proxy.refused.most_common())
        total = proxy.refused.total()
        _say(
            visible(f"mochi-server wrap: {total} refused connection{'s' * (total != 1)}: {hosts}.")
        )
    if proxy.untrusted:
        s = "s" * (proxy.untrusted != 1)
        _say(
            f"mochi-server wrap: {proxy.untrusted} TLS handshake{s} failed. {program} must trust "
            "the certificates in the file that SSL_CERT_FILE names."
        )
    if not proxy.led:
        _say(
            f"mochi-server wrap: {program} called no *{HOSTED_NAMES} through it. A program that "
            "ignores HTTPS_PROXY, like one in Java, calls the hosted API itself."
        )


def _say(text: str) -> None:
    typer.echo(text, err=True)
