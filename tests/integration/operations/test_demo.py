"""`scripts/demo`, `images` and `release` where the user made `.venv` by `pip install '.[mock]'`."""

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
    return script(clone, "demo", *options)


def script(clone: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder `clone`, with no index to install from."""
    name, *options = command
    return subprocess.run(
        [clone / "scripts" / name, *options],
        cwd=clone,
        env=environ(PIP_NO_INDEX="1", COLUMNS="200", NO_COLOR="1", **variables),
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


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_an_installation_of_ones_own_is_not_replaced(clone: Path, extra: str) -> None:
    installed = contents(clone / ".venv")
    kept = script(clone, "env", "--keep", extra)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert contents(clone / ".venv") == installed


@pytest.mark.parametrize(
    ("command", "option"),
    [("demo", "--port PORT"), ("images", "--engine podman"), ("release", "--dry-run")],
)
@pytest.mark.parametrize("asks", [["--help"], ["-h"], ["x", "--help"]])
def test_help_needs_no_installation(
    clone: Path, command: str, option: str, asks: list[str]
) -> None:
    shutil.rmtree(clone / ".venv")
    helped = script(clone, command, *asks)
    assert helped.returncode == 0
    assert option in helped.stdout
    assert not (clone / ".venv").exists()


def test_a_release_without_an_author_is_refused_before_an_installation(clone: Path) -> None:
    shutil.rmtree(clone / ".venv")
    config = clone / "gitconfig"
    config.write_text("[user]\n  useConfigOnly = true\n")
    nobody = {"GIT_CONFIG_GLOBAL": str(config), "GIT_CONFIG_NOSYSTEM": "1"}
    refused = script(clone, "release", "v9.0.0", "--dry-run", **nobody)
    assert refused.returncode == 1
    assert "git config user.name" in refused.stderr
    assert not (clone / ".venv").exists()
