"""`scripts/bench-gpu-wheels`, with pip and an index of tiny wheels on the disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "bench-gpu-wheels"
FFMPEG = "imageio-ffmpeg"


def write_wheel(folder: Path, name: str, version: str, size: int = 0) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    with ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("ffmpeg", bytes(size))


def download(index: Path, wheels: Path) -> subprocess.CompletedProcess[str]:
    pip = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_NO_BUILD_ISOLATION": "0",  # 0 turns isolation off: hatchling is installed here
    }
    environ = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **pip}
    command = [SCRIPT, wheels]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_wheels_of_the_pinned_versions_are_refused_when_they_are_too_large(tmp_path: Path) -> None:
    index, wheels = tmp_path / "index", tmp_path / "wheels"
    index.mkdir()
    pins = re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for name, version in pins:
        write_wheel(index, name, version)
    write_wheel(index, FFMPEG, "0.6.0", size=64 * 2**20)
    refused = download(index, wheels)
    assert (refused.returncode, refused.stderr.count("more than 64 MiB")) == (1, 1), refused
    assert re.search(r": 64 MiB in \d\d wheels", refused.stdout)
    names = {path.name.partition("-")[0] for path in wheels.iterdir()}
    assert {"diffusers", "imageio_ffmpeg", "mochi_server", "pydantic_core"} < names
    assert names.isdisjoint({"torch", "transformers"})
    # Another call would leave two versions of a package.
    assert "is not empty" in download(index, wheels).stderr
