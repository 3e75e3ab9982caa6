"""`scripts/demo` in a clone whose `.venv` the user made with `pip install '.[mock]'`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mochi_server
from tests.support.up import environ

ROOT = Path(mochi_server.__file__).parent
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with an installation that is not editable: its packages lie in `.venv`."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    (clone / ".venv" / "bin").mkdir(parents=True)
    make = [sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")]
    subprocess.run(make, check=True)
    packages = clone / ".venv" / "lib" / PYTHON / "site-packages"
    for name in ("mochi_server.py", "server", "worker", "models"):
        (packages / name).symlink_to(ROOT / name)
        (clone / name).symlink_to(ROOT / name)
    hides_torch = "import sys; sys.modules['torch'] = None"  # for the light mock
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{hides_torch}\n")
    command = clone / ".venv" / "bin" / "mochi-server"
    command.write_text(f"#!{command.with_name('python')}\nimport mochi_server\nmochi_server.main()")
    command.chmod(0o755)
    return clone


def demo(clone: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it in the folder `clone`, with no index to install from."""
    return subprocess.run(
        [clone / "scripts" / "demo", *options],
        cwd=clone,
        env=environ(PIP_NO_INDEX="1", COLUMNS="200", NO_COLOR="1"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def contents(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_it_makes_a_video_and_overwrites_neither_a_video_nor_the_installation(clone: Path) -> None:
    (clone / "mochi.mp4").write_text("of another day")
    installed = contents(clone / ".venv")
    made = demo(clone)
    assert made.returncode == 0, made.stdout + made.stderr
    assert str(clone / "mochi-2.mp4") in made.stdout
    assert (clone / "mochi-2.mp4").read_bytes()[4:8] == b"ftyp"
    assert (clone / "mochi.mp4").read_text() == "of another day"
    assert contents(clone / ".venv") == installed


def test_a_port_that_another_server_has_is_named(clone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = demo(clone, "--port", str(port))
    assert refused.returncode == 1
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use." in refused.stdout
    assert not (clone / "mochi.mp4").exists()


def test_a_place_that_cannot_be_written_is_named_before_a_server_is_started(clone: Path) -> None:
    refused = demo(clone, "-o", str(clone / "absent" / "x.mp4"))
    assert refused.returncode == 1
    assert f"There is no folder {clone / 'absent'} to write x.mp4 to." in refused.stdout
    assert "mochi-server up" not in refused.stdout
    assert not (clone / "absent").exists()


def test_its_help_needs_no_installation(clone: Path) -> None:
    shutil.rmtree(clone / ".venv")
    helped = demo(clone, "--help")
    assert helped.returncode == 0
    assert "--port PORT" in helped.stdout
    assert not (clone / ".venv").exists()
