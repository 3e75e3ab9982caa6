"""The images: what is in their layers, in which order, and what their labels and SBOM say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.images.__main__ import app

ROOT = Path(__file__).parents[3]
STAGES = {
    stage.split("\n", 1)[0].split(" AS ")[1]: stage
    for stage in re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
}
CONTEXT = set(re.findall(r"^!(\S+?)/?$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
OURS = ("from=wheel", "COPY .", "ARG VERSION", "ARG REVISION")
"""What changes with a source or a version."""
IMAGES = ("gateway", "worker")

both = pytest.mark.parametrize("image", IMAGES)


def base(stage: str) -> str:
    return STAGES[stage].split(" ", 1)[0]


def requirements(*extras: str) -> list[str]:
    """What the images install for these extras."""
    command = [sys.executable, str(ROOT / "docker/image/requirements.py"), *extras]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return printed.stdout.splitlines()


def test_a_build_is_sent_what_the_wheel_is_built_from_and_nothing_else() -> None:
    project = PROJECT["project"]
    scripts = {"docker/image/requirements.py", "docker/image/sbom.py"}
    backend = {"pyproject.toml", "constraints.txt", "hatch_build.py"}
    described_by = {project["readme"], *project["license-files"]}
    shipped = {*WHEEL["only-include"], *WHEEL["shared-data"]}
    assert scripts | backend | described_by | shipped == CONTEXT


@both
def test_a_change_of_a_source_or_version_leaves_the_layers_of_the_dependencies(image: str) -> None:
    lower = [f"{image}-dependencies", f"{image}-sbom", "pins"]
    assert base(image) == lower[0]
    assert not [stage for stage in lower for ours in OURS if ours in STAGES[stage]]
    assert "from=wheel" in STAGES[image]


def test_a_change_of_other_pins_leaves_the_layer_of_torch() -> None:
    stage = STAGES["worker-dependencies"]
    first, second = (stage.index(f"-c /pins/{pins}.txt") for pins in ("torch", "constraints"))
    assert first < second
    assert "constraints.txt" not in stage[:first]


@both
def test_the_last_step_that_changes_files_installs_the_wheel_without_an_index(image: str) -> None:
    last = re.findall(r"^(?:RUN|COPY) (?:\\\n|.)+", STAGES[image], re.MULTILINE)[-1]
    assert "--no-deps --no-index /wheel/*.whl" in last


def test_no_build_takes_a_backend_of_another_version_than_the_pinned_one() -> None:
    build = next(line for line in STAGES["wheel"].splitlines() if "CONSTRAINT" in line)
    assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in build


def test_an_image_has_what_its_process_serves() -> None:
    """`wrap` is for the machine of a client."""
    assert "requirements.py mcp otel >gateway.txt" in STAGES["pins"]
    assert 'requirements.py otel provenance "${WORKER_EXTRA}" >worker.txt' in STAGES["pins"]


def test_extras_that_name_extras_are_resolved() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert requirements() == project["dependencies"]
    assert requirements("mcp", "otel") == [
        *project["dependencies"],
        *extras["mcp"],
        *extras["otel"],
    ]
    mock = set(requirements("mock")) - set(project["dependencies"])
    assert mock == {*extras["mock"], *extras["valkey"]} - {"mochi-server[valkey]"}


@pytest.mark.parametrize("step", re.findall(r"^RUN (?:\\\n|.)+", "\n".join(STAGES.values()), re.M))
def test_what_asks_an_index_takes_a_mirror_of_the_operator(step: str) -> None:
    if "pip install" in step or "pip wheel" in step:
        secrets = ("id=pip.conf,target=/etc/pip.conf", "id=ca.pem")
        assert "--no-index" in step or all(secret in step for secret in secrets)


@both
def test_labels_tell_what_the_build_was_told_and_all_licences(image: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="(.*)"', STAGES[image]))
    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION}"
    licences = labels["licenses"].split(" AND ")
    assert licences == sorted(set(licences))
    of_bundled_programs = {"GPL-3.0-or-later", "BSD-3-Clause"}
    of_cuda = {"LicenseRef-NVIDIA-Proprietary"} if image == "worker" else set()
    assert of_bundled_programs | of_cuda | {PROJECT["project"]["license"]} <= set(licences)


def test_without_docker_and_podman_scripts_images_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = CliRunner().invoke(app, [])
    assert ended.exit_code == 1
    assert "`docker compose`" in ended.output
    assert "`podman-compose`" in ended.output
