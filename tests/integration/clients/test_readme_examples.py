"""The clients in the README run as they stand there, against real processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from tests.support.stack import Stack

README = Path(__file__).parents[3] / "README.md"
URL = "http://127.0.0.1:8000"
NODE = compute_driver_executable()[0]
"""The Node.js that Playwright brings: a machine need not have one."""


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("python", [sys.executable, "-c"]),
        ("bash", ["bash", "-euc"]),
        ("javascript", [NODE, "--input-type=module", "-e"]),
    ],
)
def test_a_client_makes_a_video(
    server: Stack, tmp_path: Path, language: str, program: list[str]
) -> None:
    (example,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert URL in example
    environ = server.environ | {"MOCHI_API_KEY": server.key(), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [*program, example.replace(URL, server.url)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "panda.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_diff_is_the_base_url_alone(server: Stack) -> None:
    (diff,) = re.findall(r"```diff\n-(.*)\n\+(.*)\n```", README.read_text())
    before, after = diff
    assert after == before.replace(")", f', base_url="{URL}/v1")')
