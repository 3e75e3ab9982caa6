"""The NVIDIA driver, asked without a GPU: a small library stands in for it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

import pytest
import torch

from models.cuda import CudaEnergy, CudaMeter, card, driver_cuda

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


NVML = """
#include <string.h>
typedef struct card {{ const char *uuid; unsigned long long mj; }} card;
static card cards[] = {{ {{ "GPU-aa", 1500 }}, {{ "GPU-bb", 700250 }} }};
int nvmlInitWithFlags(unsigned int flags) {{ return 0; }}
int nvmlInit_v2(void) {{ return 0; }}
int nvmlDeviceGetHandleByUUID(const char *uuid, card **handle) {{
  for (int i = 0; i < 2; i++)
    if (!strcmp(uuid, cards[i].uuid)) {{ *handle = &cards[i]; return 0; }}
  return 6; /* NVML_ERROR_NOT_FOUND */
}}
int nvmlDeviceGetTotalEnergyConsumption(card *handle, unsigned long long *mj) {{
  *mj = handle->mj;
  return {status};
}}
"""
"""Of two cards. The second argument of each is the result."""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """NVIDIA's own Python library, over a small library in place of the driver's."""
    pynvml = pytest.importorskip("pynvml")

    def install(status: int) -> None:
        library = tmp_path / "libnvidia-ml.so.1"
        build = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(build, input=NVML.format(status=status), text=True, check=True)
        monkeypatch.setattr(pynvml, "CDLL", lambda _: ctypes.CDLL(str(library)))
        monkeypatch.setattr(pynvml, "nvmlLib", None)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    names = {"cuda:0": "bb", "cuda:1": "aa", "cuda:2": "cc"}  # of torch, in another order
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda it: SimpleNamespace(uuid=names[str(it)])
    )
    return install


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize(
    ("status", "ranks", "joules"),
    [
        (0, [0], 700.25),
        (0, [0, 1], 701.75),
        (0, [0, 2], None),  # one of the group does not tell
        (3, [0], None),  # NVML_ERROR_NOT_SUPPORTED: before Volta
    ],
)
def test_the_energy_of_a_run_is_that_of_all_its_cards_or_unknown(
    nvml: Callable[[int], None], status: int, ranks: list[int], joules: float | None
) -> None:
    nvml(status)
    assert CudaEnergy([card("cuda", rank) for rank in ranks])() == joules


def test_without_the_library_or_the_driver_no_energy_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CudaEnergy([card("cuda")])() is None  # no driver here, or no counter of a fresh process
    missing: dict[str, ModuleType | None] = {"pynvml": None}
    for name, module in missing.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert CudaEnergy([card("cuda")])() is None
