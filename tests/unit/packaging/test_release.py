"""`scripts/release`, run in a clone of this repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.support.helm import HELM, needs_helm

ROOT = Path(__file__).parents[3]
CHANGE = "- Pandas are drawn with both ears."
AUTHOR = "a <a@example.org>"
FIRST, LATER = "v7.0.0", "v7.1.0"

pytestmark = [
    needs_helm,
    pytest.mark.skipif(
        not Path("/usr/bin/gpg").exists() and "CI" not in os.environ, reason="GPG is not installed"
    ),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this source is not a clone"),
]


class Project:
    """A clone on its branch main, with a change in its changelog. Its origin is another clone."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.folder = folder / "origin.git", folder / "clone"
        self.folder.mkdir()
        self.git("clone", "-q", "--bare", str(ROOT), str(self.origin))
        self.git("clone", "-q", str(self.origin), ".")
        self.git("checkout", "-q", "-B", "main")
        self.git("config", "user.name", "a")
        self.git("config", "user.email", "a@example.org")
        self.change("CHANGELOG.md", "## Unreleased\n", f"## Unreleased\n\n{CHANGE}\n")

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        ended = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True)
        return ended.stdout.strip()

    def change(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        self.git("commit", "-q", "-m", f"Change {name}", name)

    def release(
        self, *arguments: str, keys: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert HELM is not None
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / "python" / "release.py", *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{Path(HELM).parent}:/usr/bin:/bin",
                "HOME": str(self.folder.parent),
                "GNUPGHOME": str(keys or self.folder.parent),
            },
            check=False,
            capture_output=True,
            text=True,
        )

    def state(self) -> tuple[str, ...]:
        """What a release changes."""
        dist = self.folder / "dist"
        return (
            self.git("rev-parse", "HEAD"),
            self.git("tag", "--list"),
            self.git("status", "--porcelain", "--ignored"),
            str(sorted(dist.rglob("*")) if dist.exists() else ""),
        )

    def pushed(self) -> str:
        return self.git("ls-remote", "origin")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def keys() -> Iterator[Path]:
    """GPG's folder, with a key. Its path is short: GPG makes a socket in it."""
    with tempfile.TemporaryDirectory() as folder:
        gpg(Path(folder), "--batch", "--passphrase", "", "--quick-generate-key", AUTHOR, "ed25519")
        yield Path(folder)
        environment = {"PATH": "/usr/bin:/bin", "GNUPGHOME": folder}
        subprocess.run(["/usr/bin/gpgconf", "--kill", "all"], env=environment, check=True)


def gpg(keys: Path, *arguments: str) -> None:
    command = ["/usr/bin/gpg", "--homedir", str(keys), *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Project:
    """A project with a signed release."""
    project = Project(tmp_path_factory.mktemp("project"))
    before = project.pushed()
    ended = project.release(FIRST, "--sign", keys=keys)
    assert ended.returncode == 0, ended.stderr
    assert f"git push --atomic origin main {FIRST}" in ended.stdout
    args = {f"VERSION={FIRST[1:]}", f"REVISION={project.git('rev-parse', 'HEAD')}", "CREATED="}
    builds = [line for line in ended.stdout.splitlines() if "docker build" in line]
    assert len(builds) == 2
    assert all(f"--build-arg {arg}" in line for arg in args for line in builds)
    assert "twine upload dist/v7.0.0/*.whl dist/v7.0.0/*.tar.gz" in ended.stdout
    assert " push mochi-server" not in ended.stdout  # Docker takes its own hub for the registry
    assert project.pushed() == before
    return project


@pytest.fixture
def files(released: Project) -> Path:
    return released.folder / "dist" / FIRST


def test_a_release_is_a_commit_with_an_annotated_tag(released: Project) -> None:
    assert released.git("describe") == FIRST
    assert released.git("log", "-1", "--format=%s") == "Release 7.0.0"
    assert released.git("diff", "--stat", "HEAD~1", "--name-only") == "CHANGELOG.md"
    assert released.git("status", "--porcelain") == ""


def test_the_changes_go_from_unreleased_to_the_release(released: Project, files: Path) -> None:
    text = (released.folder / "CHANGELOG.md").read_text()
    section = text.partition("\n## Unreleased\n\n## 7.0.0 - ")[2]
    assert re.match(r"\d{4}-\d\d-\d\d\n\n" + re.escape(CHANGE), section)
    assert (files / "RELEASE_NOTES.md").read_text().startswith(f"# {FIRST}\n\n{CHANGE}\n")


def test_wheel_sdist_and_chart_have_the_version_of_the_tag(released: Project, files: Path) -> None:
    record = {"version": "7.0.0", "commit": released.git("rev-parse", "HEAD")}
    with ZipFile(files / "mochi_server-7.0.0-py3-none-any.whl") as wheel:
        assert json.loads(wheel.read("models/version/record.json")) == record
        assert "Version: 7.0.0\n" in wheel.read("mochi_server-7.0.0.dist-info/METADATA").decode()
    sdist = read(
        files / "mochi_server-7.0.0.tar.gz", "mochi_server-7.0.0/models/version/record.json"
    )
    assert json.loads(sdist) == record
    chart = read(files / "mochi-server-7.0.0.tgz", "mochi-server/Chart.yaml")
    assert re.findall(r"^(?:v|appV)ersion: (.+)$", chart, re.MULTILINE) == ["7.0.0", "7.0.0"]


def read(archive: Path, name: str) -> str:
    with tarfile.open(archive) as files:
        member = files.extractfile(name)
        assert member is not None
        return member.read().decode()


def test_all_files_of_the_chart_have_the_time_of_the_commit(released: Project, files: Path) -> None:
    """So that the same commit makes the same bytes, whenever and by whichever Helm."""
    with tarfile.open(files / "mochi-server-7.0.0.tgz") as chart:
        times = {member.mtime for member in chart}
    assert times == {int(released.git("log", "-1", "--format=%ct"))}


def test_the_printed_commands_push_images_and_chart_to_the_named_registry(
    project: Project,
) -> None:
    ended = project.release(FIRST, "--registry", "registry.example")
    assert ended.returncode == 0, ended.stderr
    for command in (
        "docker push registry.example/mochi-server-gateway:7.0.0",
        "docker push registry.example/mochi-server-worker:7.0.0",
        "helm push dist/v7.0.0/mochi-server-7.0.0.tgz oci://registry.example/charts",
    ):
        assert f"  {command}\n" in ended.stdout


def test_files_that_cannot_be_copied_leave_neither_a_tag_nor_a_part_of_them(
    project: Project,
) -> None:
    release = runpy.run_path(str(ROOT / "scripts" / "python" / "release.py"))
    source, made = project.folder.parent / "source", project.folder.parent / "made"
    project.git("clone", "-q", str(project.folder), str(source))
    project.git("-C", str(source), "tag", FIRST)
    made.mkdir()
    (made / "copied").write_text("a")
    (made / "unreadable").symlink_to("nonesuch")
    before = project.state()
    plan = release["Plan"](FIRST, registry="", images=False, sign=False, dry_run=False)
    with pytest.raises(release["ReleaseError"], match=r"dist/v7\.0\.0 cannot be written"):
        release["take_over"](project.folder, source, made, plan)
    assert not (project.folder / "dist" / FIRST).exists()
    assert project.state()[:3] == before[:3]


def test_checksums_and_provenance_name_each_file_and_the_commit(
    released: Project, files: Path
) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.iterdir()}
    del found["SHA256SUMS"], found["SHA256SUMS.asc"]
    lines = (files / "SHA256SUMS").read_text().splitlines()
    assert {name: digest for digest, name in (line.split("  ") for line in lines)} == found
    statement = json.loads((files / "provenance.intoto.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert len(subjects) == 3
    assert subjects.items() <= found.items()
    [source, *_] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": released.git("rev-parse", "HEAD")}


def test_signatures_of_tag_and_checksums_verify(
    released: Project, files: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpg(keys, "--verify", str(files / "SHA256SUMS.asc"), str(files / "SHA256SUMS"))
    monkeypatch.setenv("GNUPGHOME", str(keys))
    released.git("verify-tag", FIRST)


def test_a_release_is_not_signed_without_a_key(project: Project) -> None:
    before = project.state()
    ended = project.release(FIRST, "--sign")
    assert ended.returncode == 1
    assert "gpg failed to sign the data" in ended.stderr
    assert project.state() == before


def test_a_dry_run_leaves_the_repository_as_it_was(project: Project) -> None:
    before = project.state()
    ended = project.release(FIRST, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "mochi_server-7.0.0-py3-none-any.whl" in ended.stdout
    assert project.state() == before


def test_builds_that_differ_are_no_release_and_leave_the_repository_as_it_was(
    project: Project,
) -> None:
    project.change("hatch_build.py", "build._asdict()", 'build._asdict() | {"commit": self.root}')
    before = project.state()
    ended = project.release(FIRST)
    assert ended.returncode == 1
    assert "two builds of the same commit differ: mochi_server-7.0.0" in ended.stderr
    assert project.state() == before


def edit(project: Project) -> None:
    (project.folder / "README.md").write_text("another")


def empty_the_changelog(project: Project) -> None:
    (project.folder / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 0.1.0\n\n- It.\n"
    )
    project.git("commit", "-q", "-a", "-m", "Empty it")


@pytest.mark.parametrize(
    ("arrange", "tag", "reason"),
    [
        (edit, FIRST, "commit or remove these changes first:\nM README.md"),
        (lambda project: project.git("tag", LATER), FIRST, "v7.1.0 is released already"),
        (lambda project: project.git("tag", FIRST), FIRST, "v7.0.0 is released already"),
        (lambda project: project.git("switch", "-q", "-c", "b"), FIRST, "from main, not from b."),
        (Project.state, "7.0.0", "a release is called like v0.2.0, not 7.0.0."),
        (empty_the_changelog, FIRST, "CHANGELOG.md needs a section `## Unreleased` that lists"),
    ],
)
def test_what_cannot_be_released_is_refused_with_the_reason(
    project: Project, arrange: Any, tag: str, reason: str
) -> None:
    arrange(project)
    before = project.state()
    ended = project.release(tag)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert project.state() == before
