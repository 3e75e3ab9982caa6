"""Makes one video with a real server and no GPU: what `scripts/demo` runs.

It starts the server, sends the example of the hosted API's page through the hosted API's SDK, and
stops the server.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx  # the SDK's HTTP client, whose errors it lets through
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from segmind import SegmindClient
from segmind.exceptions import SegmindError

from models.errors import MochiError
from models.request.example import EXAMPLE_REQUEST
from server.cli.output import check_file, new_file
from server.keys.first import read_first_key
from worker.process.shutdown import on_signals

MODEL = "mochi-1"
START_SECONDS = 180  # where torch is installed, importing it is slow on a cold disk
VIDEO_SECONDS = 1200
DEFAULT_OUTPUT = Path("mochi.mp4")
STOP_SECONDS = 60  # longer than the server lets a running request finish

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A failure to print to the user."""


def main() -> int:
    """Run the demo and return the exit status."""
    options = parse_options()
    # A closed terminal or a `kill` ends the demo as Ctrl-C does: the server is stopped.
    on_signals(interrupt, signal.SIGTERM, signal.SIGHUP)
    # No proxy for this machine.
    os.environ["no_proxy"] = "127.0.0.1"
    try:
        with (
            output_file(options.output) as output,
            data_folder(options.data_dir) as data_dir,
            running_server(data_dir, options.port) as server,
        ):
            key = read_first_key(data_dir)  # the first start makes one
            make_video(server, key, output)
    except (DemoError, MochiError, SegmindError, httpx.HTTPError, OSError) as error:
        reason = error.detail if isinstance(error, SegmindError) else None
        console.print(f"The demo failed: {reason or error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    print_next_steps()
    return 0


def parse_options() -> argparse.Namespace:
    """The options; `scripts/demo` explains them, before this file's libraries are installed."""
    parser = argparse.ArgumentParser(prog="scripts/demo", add_help=False)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER")
    return parser.parse_args()


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


def output_file(chosen: Path | None) -> AbstractContextManager[Path]:
    """The chosen file, or a new one.

    Raises:
        OutputError: it cannot be written.
    """
    if chosen is None:
        return new_file(DEFAULT_OUTPUT)
    check_file(chosen)
    return nullcontext(chosen)


@contextmanager
def data_folder(chosen: Path | None) -> Iterator[Path]:
    """Yield the chosen folder, or a temporary one."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mochi-demo-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Server:
    """`mochi-server up`, and the file that takes its output."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Its address, once it is ready; empty before. Another server may have the chosen port."""
        found = re.search(
            r"^Ready on (\S+)/v1 ", self.log.read_text(errors="replace"), re.MULTILINE
        )
        return found[1] if found else ""

    def check_alive(self) -> None:
        """Raise DemoError with the server's last output if it has ended."""
        if (code := self.process.poll()) is not None:
            raise DemoError(f"the server ended with status {code}:\n{self.last_words()}")

    def last_words(self, lines: int = 40) -> str:
        """Return the end of the server's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Stop the server and its children, and wait for them."""
        if self.process.poll() is not None:
            return
        # An interrupted stop would leave the broker behind.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        with console.status("Stopping the server"):
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@contextmanager
def running_server(data_dir: Path, port: int) -> Iterator[Server]:
    """Run `mochi-server up --mock` and stop it at the end."""
    command = [
        str(Path(sys.executable).with_name("mochi-server")),
        "up", "--mock", "--port", str(port), "--data-dir", str(data_dir),
    ]  # fmt: skip
    # The caller's settings, such as a broker, are for another server.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("MOCHI_")}
    console.print(f"$ mochi-server {' '.join(command[1:])}", style="dim", markup=False)
    log = data_dir / "demo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the server
        )
    server = Server(process, log)
    try:
        wait_until_ready(server)
        yield server
    except httpx.TransportError:
        time.sleep(1)  # the connection breaks just before the process ends
        server.check_alive()
        raise
    finally:
        server.stop()


def wait_until_ready(server: Server) -> None:
    """Wait until the server says so."""
    started = time.monotonic()
    with console.status("") as status:
        while (waited := time.monotonic() - started) < START_SECONDS:
            status.update(f"Starting broker, gateway and worker: {waited:.0f} s")
            server.check_alive()
            if server.url:
                console.print(f"Ready at {server.url} after {waited:.0f} s.")
                return
            time.sleep(0.2)
    raise DemoError(f"no worker was ready after {START_SECONDS} s:\n{server.last_words()}")


def make_video(server: Server, key: str, output: Path) -> None:
    """Make a video as a client of the hosted API does."""
    client = SegmindClient(api_key=key, base_url=f"{server.url}/v1")
    console.print("Making the example of the hosted API's page.")
    started = time.monotonic()
    job = client.submit_async(MODEL, **EXAMPLE_REQUEST)
    follow(job)
    result = job.result()
    took = time.monotonic() - started
    size = download(result["output"], output)
    frames, fps = EXAMPLE_REQUEST["frames"], EXAMPLE_REQUEST["fps"]
    console.print(f"{output.resolve()}", style="bold", markup=False)
    console.print(f"{frames} frames at {fps} fps, {size / 1000:.0f} kB, made in {took:.1f} s.")


def follow(job: Any) -> None:  # noqa: ANN401  the SDK has no types
    """Show the job's progress until it ends. Raises DemoError if it fails."""
    deadline = time.monotonic() + VIDEO_SECONDS
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("submitted", total=None)
        while time.monotonic() < deadline:
            status: dict[str, Any] = job.status()
            match status["status"]:
                case "COMPLETED":
                    return
                case "FAILED":
                    raise DemoError(status.get("error") or "the request failed")
            # `progress` is an addition of this server.
            progress = status.get("progress")
            bar.update(
                task,
                description=describe(status),
                completed=progress or 0,
                total=None if progress is None else 100,
            )
            time.sleep(0.3)
    raise DemoError(f"no video after {VIDEO_SECONDS} s (request {job.request_id})")


def describe(status: dict[str, Any]) -> str:
    """Stage and queue position in words."""
    stage = str(status.get("stage") or status["status"]).lower().replace("_", " ")
    position = status.get("queue_position")
    return f"{stage}, number {position} in the queue" if position else stage


def download(url: str, output: Path) -> int:
    """Write the video to `output` and return its size in bytes."""
    video = httpx.get(url, timeout=60).raise_for_status().content
    output.write_bytes(video)
    return len(video)


def print_next_steps() -> None:
    console.print(
        """
The video has no model behind it; everything else is real. Next:

  .venv/bin/mochi-server up --mock      a server that stays; it prints where its key is
  scripts/env worker                    adds torch, after which `--mock` runs the real engine on
                                        tiny random weights

  from segmind import SegmindClient
  client = SegmindClient(api_key="THE KEY", base_url="http://127.0.0.1:8000/v1")
  print(client.run("mochi-1", prompt="a fox in the snow")["output"])

README.md shows more clients, GPUs and Docker; docs/ has every option.""",
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
