"""The health check of the worker's image: a file that the heartbeat touches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, eventually

DOCKERFILE = (Path(__file__).parents[3] / "Dockerfile").read_text()
CHECK = json.loads(re.findall(r"^    CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[-1])
FILE_OF_IMAGE = re.findall(r"MOCHI_ALIVE_FILE=(\S+)", DOCKERFILE)[-1]
LONG_AGO_SECONDS = 90


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A broker, without gateways and workers."""
    with Stack(tmp_path, engine="fake") as stack:
        yield stack


def is_healthy(file: Path) -> bool:
    check = [part.replace(FILE_OF_IMAGE, str(file)) for part in CHECK]
    return subprocess.run(check, check=False, capture_output=True).returncode == 0


def age(file: Path) -> float:
    past = time.time() - LONG_AGO_SECONDS
    os.utime(file, (past, past))
    return past


def test_a_worker_is_healthy_while_it_beats_whatever_the_broker_does(stack: Stack) -> None:
    file = stack.folder / "alive"
    assert not is_healthy(file)
    worker = stack.start_worker(alive_file=str(file))
    eventually(lambda: is_healthy(file))
    stack.broker.stop()
    eventually(lambda: "broker.silent" in stack.log_of(worker))
    age(file)
    eventually(lambda: is_healthy(file))
    stack.broker.start()
    worker.send_signal(signal.SIGSTOP)
    age(file)
    assert not is_healthy(file)


def test_a_worker_that_cannot_begin_is_not_healthy_yet(stack: Stack) -> None:
    file = stack.folder / "alive"
    store_is_away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    settings = {"MOCHI_ALIVE_FILE": str(file), "MOCHI_OUTPUTS": "s3://videos"}
    stack.start("worker", environ=store_is_away | credentials | settings)
    eventually(lambda: "outputs.away" in stack.logs(), seconds=30)
    assert not is_healthy(file)
