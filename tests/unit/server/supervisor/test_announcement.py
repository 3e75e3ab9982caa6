"""What `up` prints when it is ready."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from server.settings import ServerSettings
from server.supervisor.up import Supervisor
from server.transport.connection.listener import listen
from worker.process.shutdown import Stop
from worker.process.systemd import Notifier

EVERYWHERE = "0.0.0.0"  # noqa: S104 (no client comes)
ELSEWHERE = re.compile(r"^From other machines: (https?)://([\w.-]+):\d+/v1", re.MULTILINE)


def announced(
    capfd: pytest.CaptureFixture[str],
    host: str = "127.0.0.1",
    public_url: str = "",
    *,
    opens_page: bool = False,
    key_file: Path | None = None,
) -> str:
    settings = ServerSettings(port=0, host=host, public_url=public_url, mock=True)
    if key_file:
        settings = settings.model_copy(update={"data_dir": key_file.parent})
    with listen(settings.host, settings.port) as listener:
        supervisor = Supervisor(settings, listener, None, Stop(), Notifier(), opens_page)
        supervisor.key_file = key_file
        supervisor._announce()
    return capfd.readouterr().err


def test_an_address_for_other_machines_and_the_risk_of_plain_http_are_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    told = announced(capfd, host=EVERYWHERE)
    address = ELSEWHERE.search(told)
    assert address, told
    assert address[1] == "http"
    assert address[2] not in {"127.0.0.1", EVERYWHERE}
    assert "unencrypted" in told


@pytest.mark.parametrize("place", [("127.0.0.1", ""), (EVERYWHERE, "https://a.example")])
def test_without_other_machines_or_with_a_public_url_neither_is(
    capfd: pytest.CaptureFixture[str], place: tuple[str, str]
) -> None:
    told = announced(capfd, *place)
    assert "Ready on" in told
    assert "other machines" not in told
    assert "unencrypted" not in told


def test_a_folder_without_the_first_key_is_told_that_other_keys_are_valid(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As after a restore into an empty folder: `up` makes the key where the broker has none."""
    assert "The broker's keys are valid" in announced(capfd)


def test_without_a_terminal_the_file_of_the_key_is_told_and_how_to_use_it(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "a folder" / "key"
    file.parent.mkdir()
    file.write_text("mochi_secret\n")
    told = announced(capfd, key_file=file)
    assert (
        f"API key: kept in {file}, and not printed without a terminal. To use it: "
        f"export MOCHI_API_KEY=$(cat '{file}')"
    ) in told
    assert "mochi_secret" not in told


@pytest.mark.skipif(sys.platform == "darwin", reason="it always has a browser")
def test_a_page_that_no_browser_can_open_is_told_so(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "No browser was found here: open the page yourself." in announced(capfd, opens_page=True)
    assert "No browser" not in announced(capfd)
