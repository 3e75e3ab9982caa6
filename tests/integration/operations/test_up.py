"""`mochi-server up` and the other commands, run as a user runs them."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from models.version import this_build
from server.cli.administer.weights import has_nvidia_gpu
from tests.support.services.brokers import free_port
from tests.support.stack import COMMAND, eventually
from tests.support.up import Up, environ, gone, refused, run


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A ready server."""
    with Up(tmp_path / "data") as up:
        yield up


def test_up_makes_a_private_key_serves_and_leaves_no_process(up: Up, tmp_path: Path) -> None:
    family = up.family()
    assert len(family) == 3
    assert (up.folder / "key").stat().st_mode & 0o777 == 0o600
    with up.client() as client:
        assert client.run("mochi-1", prompt="a pond", frames=1, steps=10)["status"] == "COMPLETED"
    target = tmp_path / "pond.mp4"
    made = run("generate", "a pond", "-o", str(target), "--frames", "2", "--steps", "10",
               MOCHI_DATA_DIR=str(up.folder))  # fmt: skip
    assert made.returncode == 0, made.stderr  # the folder knows the port, too
    assert target.read_bytes()[4:8] == b"ftyp"
    key = run("keys", "create", "alice", "--data-dir", str(up.folder)).stdout.strip()
    assert httpx2.get(f"{up.url}/v1/get-user-credits", headers={"x-api-key": key}).is_success
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    assert gone(family)


def test_on_a_terminal_the_first_key_itself_is_printed(tmp_path: Path) -> None:
    command = [COMMAND, "up", "--open", "--port", "0", "--data-dir", str(tmp_path)]
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\nprintf "%s" "$*" > "$0.url.new" && mv "$0.url.new" "$0.url"\n')
    browser.chmod(0o700)
    settings = environ(MOCHI_ENGINE="fake", BROWSER=str(browser))
    ours, terminal = pty.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        subprocess.Popen(
            command, env=settings, stdin=subprocess.DEVNULL, stderr=terminal
        ) as process,
    ):
        try:
            os.close(terminal)
            shown = b""
            while b"Stop with Ctrl-C" not in shown:
                shown += screen.read(4096)
            eventually(browser.with_suffix(".url").exists)
            opened = browser.with_suffix(".url").read_text()
            redirect = httpx2.get(opened)
            # The listener may have ended, even while this connection waited for it.
            with suppress(httpx2.TransportError):
                assert httpx2.get(opened).status_code == 404
        finally:
            process.terminate()
    assert process.returncode == 0
    key = (tmp_path / "key").read_text().strip()
    assert f"API key: {key}\r\nKey file: {tmp_path / 'key'}\r\n" in shown.decode()
    page = re.search(r"^Page: (http://127\.0\.0\.1:\d+/#key=.+)\r$", shown.decode(), re.MULTILINE)
    assert page, shown
    assert page[1].endswith(f"/#key={key}")
    # Other users can see how a browser is started: without the key.
    assert key not in opened
    assert (redirect.status_code, redirect.headers["location"]) == (303, page[1])


def test_a_worker_that_dies_is_started_again(up: Up) -> None:
    (worker,) = up.workers()
    worker.kill()
    eventually(lambda: [one for one in up.workers() if one.pid != worker.pid])
    with up.client() as client:
        assert client.run("mochi-1", prompt="a pond", frames=1, steps=10)["status"] == "COMPLETED"


def test_no_connection_is_accepted_while_it_stops(up: Up) -> None:
    with up.client() as client:
        client.submit_async("mochi-1", prompt="a pond", frames=1, steps=75)
        up.process.send_signal(signal.SIGTERM)
        eventually(lambda: "running requests have 30 s to finish" in up.log.read_text())
        eventually(lambda: refused(up.port))
    assert up.process.wait(60) == 0


def test_a_gateway_stops_whenever_it_is_told_to(tmp_path: Path) -> None:
    for pause in (0.0, 0.5, 1.0, 1.5):
        gateway = subprocess.Popen(
            [COMMAND, "gateway", "--port", "0", "--data-dir", str(tmp_path)],
            env=environ(MOCHI_REDIS_URL="redis://127.0.0.1:1/0"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(pause)
        gateway.terminate()
        assert gateway.wait(60) in {0, -signal.SIGTERM}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MOCHI_PORT": "99999"}, "MOCHI_PORT"),
        ({"MOCHI_REVISION": "main"}, "MOCHI_REVISION"),
        ({"MOCHI_PROT": "8000"}, "MOCHI_PROT: there is no such setting. Did you mean MOCHI_PORT?"),
    ],
)
def test_a_bad_setting_stops_the_start_and_is_named(settings: dict[str, str], said: str) -> None:
    for command in ("up", "gateway", "worker"):
        refused = run(command, **settings)
        assert refused.returncode == 78
        assert said in refused.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--profile", "3gb", "MOCHI_PROFILE: got '3gb'. Input should be 'auto', '80gb'"),
        ("--step-cache", "1.5", "MOCHI_STEP_CACHE: got '1.5'"),
    ],
)
def test_a_bad_value_of_an_option_stops_the_start_and_is_named(
    option: str, value: str, said: str
) -> None:
    for command in ("up", "worker"):
        refused = run(command, option, value)
        assert refused.returncode == 78
        assert said in refused.stderr


def test_gateway_and_worker_say_that_they_need_a_broker() -> None:
    for command in ("gateway", "worker"):
        refused = run(command)
        assert refused.returncode == 78
        assert "MOCHI_REDIS_URL is empty" in refused.stderr


@pytest.mark.skipif(has_nvidia_gpu(), reason="there is a GPU")
def test_without_a_gpu_up_says_so_and_what_to_type(tmp_path: Path) -> None:
    refused = run("up", "--data-dir", str(tmp_path / "data"), "--port", "0")
    assert refused.returncode == 78
    for words in ("no NVIDIA GPU", "mochi-server up --mock"):
        assert words in refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_key_is_printed_alone(tmp_path: Path) -> None:
    made = run("keys", "create", "laptop", "--data-dir", str(tmp_path / "data"))
    assert made.returncode == 0
    assert made.stdout.startswith("mochi_")
    assert len(made.stdout.split()) == 1
    new, place = made.stderr.splitlines()
    assert new.startswith(f"No server has run on the data folder {tmp_path / 'data'} yet. It is")
    assert place == f"A key for the server with the data folder {tmp_path / 'data'}:"
    again = run("keys", "create", "desk", "--data-dir", str(tmp_path / "data"))
    assert again.stderr == f"{place}\n"


def test_a_folder_without_a_server_is_refused_and_not_made_by_commands_that_need_its_keys(
    tmp_path: Path,
) -> None:
    place = ("--data-dir", str(tmp_path / "typo"))
    for command in (("keys", "list"), ("keys", "revoke", "laptop"), ("audit",)):
        refused = run(*command, *place)
        assert refused.returncode == 1
        assert f"No server has run on the data folder {place[1]} yet. If you" in refused.stderr
    assert not (tmp_path / "typo").exists()


def test_the_broker_that_got_a_key_is_named_without_its_password(up: Up) -> None:
    socket_path = up.folder / "broker" / "valkey.sock"
    made = run("keys", "create", "laptop", MOCHI_REDIS_URL=f"unix://{socket_path}?client_name=x")
    assert made.returncode == 0, made.stderr
    assert made.stderr == f"A key for the server on the broker unix://{socket_path}:\n"


@pytest.mark.parametrize(
    "target", [".", "absent/pond.mp4", "x" * 300], ids=["folder", "no", "long"]
)
def test_a_place_that_cannot_be_written_is_named_before_a_video_is_asked_for(
    target: str, tmp_path: Path
) -> None:
    no_server = f"http://127.0.0.1:{free_port()}"
    refused = run("generate", "a pond", "-o", str(tmp_path / target), "--api-key", "k",
                  MOCHI_URL=no_server)  # fmt: skip
    assert refused.returncode == 1
    assert str(tmp_path) in refused.stderr
    assert "Is it running" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_could_not_be_written_is_not_lost(up: Up, tmp_path: Path) -> None:
    target = tmp_path / "pond.mp4"
    command = [COMMAND, "generate", "a pond", "-o", str(target), "--frames", "9", "--steps", "10"]
    failed = subprocess.run(
        # Files of at most one block: a write beyond that fails as on a full disk.
        ["/bin/sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *command],
        env=environ(COLUMNS="200", NO_COLOR="1", PYTHONDONTWRITEBYTECODE="1",
                    MOCHI_URL=up.url, MOCHI_DATA_DIR=str(up.folder)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert failed.returncode == 1
    assert f"{target} cannot be written: File too large. The video is made" in failed.stderr
    assert ". The request is " in failed.stderr
    link = failed.stderr.partition("curl -o FILE '")[2].partition("'")[0]
    assert httpx2.get(link).content[4:8] == b"ftyp"
    assert list(tmp_path.glob("pond*")) == []


def test_generate_says_where_a_refused_key_came_from(up: Up, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("mochi_other")
    target = ("-o", str(tmp_path / "pond.mp4"))
    refused = run("generate", "a pond", *target, MOCHI_URL=up.url, MOCHI_DATA_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert ". (401)" not in refused.stderr
    assert f"(401). The key is from {tmp_path / 'key'}: set MOCHI_API_KEY" in refused.stderr
    chosen = run("generate", "a pond", *target, "--api-key", "mochi_wrong", MOCHI_URL=up.url)
    assert "(401)" in chosen.stderr
    assert "The key is from" not in chosen.stderr
    stale = run("generate", "a pond", *target, MOCHI_API_KEY="mochi_stale", MOCHI_URL=up.url)
    assert "(401). The key is from MOCHI_API_KEY: unset it" in stale.stderr


def test_generate_says_what_to_do_when_there_is_no_server(tmp_path: Path) -> None:
    missing = tmp_path / "missing.mp4"
    refused = run("generate", "a pond", "-o", str(missing), "--api-key", "k",
                  MOCHI_URL=f"http://127.0.0.1:{free_port()}")  # fmt: skip
    assert refused.returncode == 1
    assert "Is it running? `mochi-server up`" in refused.stderr
    assert not missing.exists()
    folder = str(tmp_path / "none")
    refused = run("generate", "a pond", "-o", str(missing), "--data-dir", folder)
    assert refused.returncode == 1
    assert f"No server runs on the data folder {folder}. Start one with" in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "gateway",
        "worker",
        "generate",
        "keys create",
        "weights pull",
        "weights verify",
        "weights path",
    ],
)
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    helped = run(*command.split(), "--help")
    assert helped.returncode == 0
    assert f"mochi-server {command}" in helped.stdout.partition("Options")[0].split("Usage", 1)[1]
    assert "Example" in helped.stdout or "--mock" in helped.stdout


def test_h_is_help_everywhere() -> None:
    for command in ((), ("up",), ("keys",), ("keys", "create")):
        assert run(*command, "-h").stdout == run(*command, "--help").stdout


def test_both_ways_to_ask_for_the_version_name_the_commit() -> None:
    assert this_build().commit
    assert run("version").stdout == run("--version").stdout == f"{this_build()}\n"


@pytest.mark.parametrize("chosen", [{"MOCHI_MOCK": "true"}, {"MOCHI_ENGINE": "fake"}], ids=str)
def test_without_the_workers_libraries_up_ends_and_says_what_to_type(
    chosen: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "imageio_ffmpeg.py").write_text("raise ModuleNotFoundError('imageio_ffmpeg')")
    ended = run("up", "--port", "0", "--data-dir", str(tmp_path / "data"),
                PYTHONPATH=str(tmp_path), **chosen)  # fmt: skip
    assert ended.returncode == 78
    assert "are not installed (imageio_ffmpeg)" in ended.stderr
    assert "type: pip install -c constraints.txt '.[mock]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("command", "status"), [("up --port 0", 78), ("keys create alice", 1)])
def test_a_broker_that_cannot_be_used_ends_a_command_with_the_name_of_the_setting(
    command: str, status: int, tmp_path: Path
) -> None:
    ended = run(*command.split(), "--data-dir", str(tmp_path), MOCHI_ENGINE="fake",
                MOCHI_VALKEY="/none")  # fmt: skip
    assert ended.returncode == status
    assert "MOCHI_VALKEY=/none cannot be used: there is no such program." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_command_prints_no_log_between_its_results(tmp_path: Path) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=00000000:0'\n")
    server.chmod(0o700)
    made = run("keys", "create", "alice", "--data-dir", str(tmp_path / "data"), PATH=str(tmp_path))
    assert re.fullmatch(r"mochi_\S+\n", made.stdout)
    assert f"program={server} reason='its version is 7.0" in made.stderr


def test_without_torch_the_mock_makes_videos_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    # The last one keeps `up` from being a fork, which would not read the file.
    variables = {"PYTHONPATH": str(tmp_path), "MOCHI_ENGINE": "mochi", "PYTHONNOUSERSITE": "1"}
    with Up(tmp_path / "data", "--mock", **variables) as up:
        with up.client() as client:
            assert client.run("mochi-1", prompt="a cat", frames=1, steps=10)["output"]
        eventually(lambda: "/v1 (light mock)\n" in up.log.read_text())
        engines = httpx2.get(f"{up.url}/version").json()["engines"]
        assert [engine["model"] for engine in engines] == ["light mock"]


def test_without_torch_mock_weights_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1"}
    refused = run("up", "--mock-weights", "--port", "0", "--data-dir", str(tmp_path), **variables)
    assert refused.returncode == 78
    assert "are not installed (missing: torch)" in refused.stderr
    assert "Starting" not in refused.stderr


def test_options_that_mean_nothing_to_mock_weights_are_named(tmp_path: Path) -> None:
    with Up(tmp_path / "data", "--fp8", "--profile", "24gb") as up:
        line = "Ignored without real weights: MOCHI_FP8, MOCHI_PROFILE.\n"
        assert up.log.read_text().count(line) == 1
