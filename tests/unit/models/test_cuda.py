"""The NVIDIA driver, asked without a GPU: a small library stands in for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch

from models.cuda import CudaMeter, card, driver_cuda

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


@pytest.mark.parametrize(
    ("refused", "used", "busy"),
    [("utilization", 5, None), ("device_memory_used", None, 0.4)],
)
def test_what_a_card_does_not_tell_hides_nothing_else(
    monkeypatch: pytest.MonkeyPatch, refused: str, used: int | None, busy: float | None
) -> None:
    """As a part of a card (MIG) tells no utilisation."""

    def refuse(_: torch.device) -> NoReturn:
        raise RuntimeError("Not Supported")

    tells = {
        "device_memory_used": lambda _: 5,
        "utilization": lambda _: 40,
        "memory_allocated": lambda _: 1,
        "memory_reserved": lambda _: 2,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=9),
    }
    for name, tell in (tells | {refused: refuse}).items():
        monkeypatch.setattr(torch.cuda, name, tell)
    (use,) = CudaMeter([card("cuda")])()
    assert (use.used_bytes, use.busy, use.allocated_bytes) == (used, busy, 1)
