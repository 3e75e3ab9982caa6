"""The NVIDIA driver, asked without a GPU: a small library stands in for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from models.cuda import driver_cuda

DRIVER = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return {status}; }}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize(
    ("version", "status", "expected"),
    [(12040, 0, (12, 4)), (13000, 0, (13, 0)), (0, 0, None), (12040, 999, None)],
)
def test_the_driver_says_up_to_which_cuda_it_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    status: int,
    expected: tuple[int, int] | None,
) -> None:
    library = tmp_path / "libcuda.so.1"
    source = DRIVER.format(version=version, status=status)
    build = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(build, input=source, text=True, check=True)
    monkeypatch.setattr("models.cuda.DRIVER", str(library))
    assert driver_cuda() == expected


def test_without_a_driver_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cuda.DRIVER", "/no/such/library.so")
    assert driver_cuda() is None
