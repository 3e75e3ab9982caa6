"""Main memory: what loading needs, what there is, and one load at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models.errors import EngineUnavailableError
from models.mochi.memory.main_memory import available_gib, check, needed_gib, one_at_a_time
from models.mochi.memory.profiles import PROFILES, TEXT

GIB = 2**30
UNLIMITED_V1 = 2**63 - 4096


def machine(root: Path, gib: float, groups: str) -> Path:
    """A file system that tells the memory as Linux does."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemAvailable: {int(gib * 2**20)} kB\nHugePages_Total: 0\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(root: Path, folder: str, most: str | int, used: int, files: int = 0) -> None:
    """Of version 2, or of version 1 below `memory`."""
    path = root / "sys/fs/cgroup" / folder
    path.mkdir(parents=True, exist_ok=True)
    is_old = folder.startswith("memory")
    names = ("limit_in_bytes", "usage_in_bytes", "total_") if is_old else ("max", "current", "")
    (path / f"memory.{names[0]}").write_text(f"{most}\n")
    (path / f"memory.{names[1]}").write_text(f"{used}\n")
    (path / "memory.stat").write_text(
        f"anon 1\n{names[2]}inactive_file {files}\n{names[2]}active_file {files}\n"
    )


def test_a_machine_without_groups_has_what_the_kernel_says(tmp_path: Path) -> None:
    gib, limit = available_gib(machine(tmp_path, 60, "0::/\n"))
    assert gib == pytest.approx(60)
    assert limit == "MemAvailable in /proc/meminfo"


def test_elsewhere_than_on_linux_no_limit_is_known(tmp_path: Path) -> None:
    assert available_gib(tmp_path) == (float("inf"), "no limit is known")


@pytest.mark.parametrize("inside", [False, True], ids=["on the host", "in a container"])
def test_the_tightest_group_above_the_process_counts(tmp_path: Path, *, inside: bool) -> None:
    machine(tmp_path, 60, "0::/\n" if inside else "0::/system.slice/mochi.service\n")
    if inside:
        group(tmp_path, "", 32 * GIB, 4 * GIB, files=GIB)
    else:
        group(tmp_path, "system.slice/mochi.service", "max", 5 * GIB)
        group(tmp_path, "system.slice", 32 * GIB, 4 * GIB, files=GIB)
    gib, limit = available_gib(tmp_path)
    assert gib == 32 - 4 + 2
    assert limit == f"/sys/fs/cgroup{'' if inside else '/system.slice'}/memory.max"


@pytest.mark.parametrize("folder", ["memory/docker/abc", "memory"], ids=["host", "container"])
def test_groups_of_version_1_count(tmp_path: Path, folder: str) -> None:
    machine(tmp_path, 60, "4:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/\n")
    group(tmp_path, "memory", UNLIMITED_V1, 50 * GIB)
    group(tmp_path, folder, 20 * GIB, 3 * GIB)
    assert available_gib(tmp_path) == (17, f"/sys/fs/cgroup/{folder}/memory.limit_in_bytes")


def test_too_little_is_refused_with_need_limit_and_remedy(tmp_path: Path) -> None:
    machine(tmp_path, 60, "0::/\n")
    group(tmp_path, "", 16 * GIB, 0)
    with pytest.raises(EngineUnavailableError) as caught:
        check(25.7, insists=False, root=tmp_path)
    assert "needs about 25.7 GiB of main memory, and 16.0 are available" in str(caught.value)
    assert "(/sys/fs/cgroup/memory.max)" in str(caught.value)
    assert "MOCHI_PRECISION=bf16" in str(caught.value)
    check(16, insists=False, root=tmp_path)


def test_a_named_profile_is_warned_of_and_loaded(tmp_path: Path) -> None:
    machine(tmp_path, 16, "0::/\n")
    with capture_logs() as logs:
        check(25.7, insists=True, root=tmp_path)
    assert [log["event"] for log in logs] == ["engine.little_main_memory"]


def test_what_stays_in_main_memory_is_added_to_t5_and_not_to_what_has_left() -> None:
    text = TEXT["reference"]
    everything = needed_gib(PROFILES["80gb"], 0)
    assert needed_gib(PROFILES["80gb"], text) == everything  # the transformer leaves before T5
    assert needed_gib(PROFILES["24gb"], text) < everything + 5
    assert needed_gib(PROFILES["offload"], text) == pytest.approx(everything + 16.4, abs=0.1)
    assert needed_gib(PROFILES["80gb"], text, reads_all_first=True) == everything + text


def test_workers_load_one_after_the_other(tmp_path: Path) -> None:
    lock = tmp_path / "data" / "loading.lock"
    code = (
        "import sys; from pathlib import Path\n"
        "from models.mochi.memory.main_memory import one_at_a_time\n"
        "with one_at_a_time(Path(sys.argv[1])):\n"
        "    print('inside')\n"
    )
    with one_at_a_time(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout
        assert "engine.waits_for_another_worker_to_load" in other.stdout.readline()
        assert other.poll() is None
    assert other.communicate(timeout=30)[0] == "inside\n"
    assert other.returncode == 0
