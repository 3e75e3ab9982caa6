"""What `pip install` brings: the wheel's files, and the distributions of each extra."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.settings import LIBRARIES
from models.version import this_build
from tests.support.models.t5_tokenizer import write_t5_tokenizer

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("server", "worker", "models")


def build(kind: str, source: Path, target: Path) -> Path:
    """A wheel or an sdist of the project in `source`."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [made] = target.glob("mochi_server-*")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    return ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as files:
        files.extractall(folder, filter="data")
    [source] = (path for path in folder.iterdir() if path.is_dir())
    return source


def test_the_wheel_has_every_file_of_the_packages_and_no_test(wheel: ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.startswith("mochi_server-")}
    assert names == {"mochi_server.py"} | {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


def test_the_wheel_knows_version_and_commit(wheel: ZipFile) -> None:
    build = this_build()
    assert json.loads(wheel.read("models/version/record.json")) == build._asdict()
    assert f"mochi_server-{build.version}.dist-info/METADATA" in wheel.namelist()


def test_an_sdist_builds_the_same_wheel(
    wheel: ZipFile, unpacked_sdist: Path, tmp_path: Path
) -> None:
    again = ZipFile(build("wheel", unpacked_sdist, tmp_path))
    assert {one.filename: one.CRC for one in again.infolist()} == {
        one.filename: one.CRC for one in wheel.infolist()
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this source is not a clone")
def test_an_sdist_has_each_tracked_file_but_no_pictures(unpacked_sdist: Path) -> None:
    command = ["git", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    pictures = {name for name in tracked if name.startswith("docs/pictures/")}
    assert pictures
    assert {name for name in tracked if not (unpacked_sdist / name).exists()} == pictures


def test_a_build_fetches_the_tested_version_of_its_backend() -> None:
    [backend] = PROJECT["build-system"]["requires"]
    assert backend in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(wheel: ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_wheel_brings_what_an_operator_installs_beside_it(wheel: ZipFile) -> None:
    data = f"mochi_server-{this_build().version}.data/data/share/mochi-server/"
    shared = {name for name in wheel.namelist() if name.startswith(data)}
    sources = {
        "constraints.txt": "constraints.txt",
        "grafana/mochi.json": "docker/grafana/dashboards/mochi.json",
        "nginx.conf": "docker/nginx.conf",
        "prometheus/rules.yaml": "docker/prometheus/rules.yaml",
        "systemd/mochi-gateway.service": "docker/systemd/mochi-gateway.service",
        "systemd/mochi-server.service": "docker/systemd/mochi-server.service",
        "systemd/mochi-worker@.service": "docker/systemd/mochi-worker@.service",
    }
    assert shared == {data + name for name in sources}
    for name, source in sources.items():
        assert wheel.read(data + name) == (ROOT / source).read_bytes()


def test_a_private_api_of_uvicorn_has_an_upper_bound() -> None:
    uvicorn = next(one for one in requirements() if one.name == "uvicorn")
    installed = metadata.version("uvicorn")
    assert installed in uvicorn.specifier
    major, minor = installed.split(".")[:2]
    assert f"{major}.{int(minor) + 1}" not in uvicorn.specifier


def requirements(*extras: str) -> list[Requirement]:
    """Of this project, by pyproject.toml: an editable installation may be older."""
    project = PROJECT["project"]
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    return [Requirement(line) for line in lines]


def closure(*extras: str) -> set[str]:
    """The names of all distributions that pip installs with these extras."""
    waiting = requirements(*extras)
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += required_by(name, extra)
    return {name for name, _ in seen}


def required_by(name: str, extra: str) -> list[Requirement]:
    if name == PROJECT["project"]["name"]:
        return requirements(*filter(None, [extra]))
    further = map(Requirement, metadata.requires(name) or ())
    return [one for one in further if not one.marker or one.marker.evaluate({"extra": extra})]


def modules_outside(*extras: str) -> list[str]:
    """The importable names of this environment that those extras do not bring."""
    brought = closure(*extras)
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if module not in {*PACKAGES, "tests"}
        and brought.isdisjoint(canonicalize_name(owner) for owner in owners)
    )


def test_an_installation_has_one_http_client() -> None:
    """The SDK in `demo` and `test` brings httpx, which httpx2 continues."""
    brought = closure("mock", "worker", "otel", "mcp", "wrap")
    assert {"httpx2", "httpcore2"} <= brought
    assert brought.isdisjoint({"httpx", "httpcore"})


NOT_INSTALLED = """
from importlib import metadata
found = metadata.Distribution.from_name
def find(name):
    if name == "mochi-server":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.Distribution.from_name = find
"""


def run_with(extras: tuple[str, ...], code: str, *arguments: str) -> str:
    """What code prints in a bare checkout, where only the distributions of some extras are."""
    hidden = dict.fromkeys(modules_outside(*extras))
    code = f"import sys\nsys.modules.update({hidden})\n{NOT_INSTALLED}\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_pull_looks_for_everything_that_the_extra_worker_brings() -> None:
    owners = metadata.packages_distributions()
    looked_for = {
        canonicalize_name(owner)
        for module in LIBRARIES
        for owner in owners[module.partition(".")[0]]
    }
    also_below_google = {"googleapis-common-protos"}
    the_broker_of_up = {"mochi-server"}  # by its extra `valkey`
    only_for_figures = {"nvidia-ml-py"}  # a run does without them
    brought = {one.name for one in requirements("worker")} - {one.name for one in requirements()}
    assert looked_for - also_below_google == brought - the_broker_of_up - only_for_figures


def test_the_real_tokenizer_is_read_with_the_extra_worker_alone(tmp_path: Path) -> None:
    """It comes as a SentencePiece model, without a `tokenizer.json`."""
    write_t5_tokenizer(tmp_path / "tokenizer")
    code = """
import models.mochi.loading.load  # all that an engine imports
import worker.process.telemetry
assert worker.process.telemetry.Tracing().tracer
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(
    sys.argv[1], subfolder="tokenizer", local_files_only=True
)
ids = tokenizer("a panda bakes bread").input_ids
print(tokenizer.decode(ids, skip_special_tokens=True), ids[-1], tokenizer.pad_token_id)
"""
    assert run_with(("worker",), code, str(tmp_path)) == "a panda bakes bread 1 0\n"


def test_the_extra_mock_alone_makes_videos(tmp_path: Path) -> None:
    code = """
from pathlib import Path
import worker.__main__
from models.build import build_engine
from models.request.params import GenerateParams
from models.settings import EngineSettings
from models.video.encoding import encode
engine = build_engine(EngineSettings(mock=True, fake_step_seconds=0), Path())
clip = engine.generate(GenerateParams(prompt="a cat", frames=7, steps=10), lambda *_: None)
encode(clip, 16, Path(sys.argv[1]))
print(engine.traits.model)
"""
    video = tmp_path / "video.mp4"
    assert run_with(("mock",), code, str(video)) == "light mock\n"
    assert video.stat().st_size


def test_the_gateway_starts_without_any_extra() -> None:
    load = "from server.cli.main import COMMANDS, load\nfor name in COMMANDS: load(name)"
    code = f"import server.app\n{load}\nprint('google.protobuf' in sys.modules)"
    assert run_with((), code) == "False\n"


def test_a_command_without_its_extra_says_what_to_type() -> None:
    code = """
from typer.testing import CliRunner
from server.cli.main import app
ended = CliRunner().invoke(app, ["wrap", "--", "true"])
print(ended.exit_code, ended.output)
"""
    told = run_with((), code)
    assert told.startswith("78 wrap needs the package trustme. Type: pip install -c constraints")
