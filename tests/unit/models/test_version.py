"""The version of a build: from git, from an archive, or from what a build recorded."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.version import this_build
from tests.chaos.releases import last_release

ROOT = Path(__file__).parents[3]
PACKAGE = "models/version"
pytestmark = pytest.mark.skipif(
    "$Format" not in (ROOT / PACKAGE / "record.json").read_text(),
    reason="this source is of a build, which has recorded its version",
)
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")


class Repository:
    """A clone of some project in which nothing but the version is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=lambda *_: ["__pycache__"])
        (folder / ".gitattributes").write_text((ROOT / ".gitattributes").read_text())
        self.git("init", "--quiet")
        self.git("add", ".")
        self.commit()

    def git(self, *arguments: str) -> str:
        command = ["git", *AUTHOR, *arguments]
        ended = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True)
        return ended.stdout.strip()

    def commit(self) -> None:
        self.git("commit", "--quiet", "--allow-empty", "--message", "Change")

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")


def build(folder: Path) -> Any:
    """What the project in `folder` says of itself."""
    return runpy.run_path(str(folder / PACKAGE / "__init__.py"))["this_build"]()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "project")


def test_a_checkout_without_a_tag_counts_its_commits(repository: Repository) -> None:
    repository.commit()
    assert build(repository.folder) == (f"0.1.0.dev2+g{repository.head[:9]}", repository.head)


def test_a_release_is_the_commit_of_its_tag(repository: Repository) -> None:
    repository.git("tag", "--annotate", "--message", "Release", "v1.2.3")
    assert build(repository.folder) == ("1.2.3", repository.head)


def test_after_a_release_comes_development_of_the_next_minor_one(repository: Repository) -> None:
    repository.git("tag", "v1.2.3")
    repository.git("tag", "nightly")
    for _ in range(3):
        repository.commit()
    repository.git("tag", "v-of-something-else")
    assert build(repository.folder) == (f"1.3.0.dev3+g{repository.head[:9]}", repository.head)


@pytest.mark.parametrize("candidate", ["v1.3.0-rc1", "v1.3.0rc1"])
def test_a_candidate_of_a_release_hides_no_release(
    repository: Repository, tmp_path: Path, candidate: str
) -> None:
    repository.git("tag", "v1.2.3")
    repository.commit()
    repository.git("tag", candidate)
    version = f"1.3.0.dev1+g{repository.head[:9]}"
    assert build(repository.folder) == (version, repository.head)
    repository.git("archive", "--format=zip", "--output", str(tmp_path / "a.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path / "unpacked")
    assert build(tmp_path / "unpacked") == (version, repository.head)


def test_the_last_release_is_one_before_this_commit(repository: Repository) -> None:
    for tag in ("v1.2.3", "v1.3.0-rc1", "v1.3.0"):
        repository.commit()
        repository.git("tag", tag)
    assert last_release(repository.folder) == "v1.2.3"
    repository.commit()
    assert last_release(repository.folder) == "v1.3.0"


def test_a_changed_file_makes_a_build_dirty(repository: Repository) -> None:
    repository.git("tag", "v1.2.3")
    assert not build(repository.folder).is_dirty
    (repository.folder / ".gitattributes").write_text("# changed\n")
    changed = build(repository.folder)
    assert changed.version == f"1.3.0.dev0+g{repository.head[:9]}.dirty"
    assert changed.is_dirty


def test_a_worktree_is_a_checkout_of_its_own(repository: Repository, tmp_path: Path) -> None:
    repository.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    repository.commit()
    assert build(tmp_path / "other").version.startswith("0.1.0.dev1+g")


def test_a_shallow_clone_knows_its_commit(repository: Repository, tmp_path: Path) -> None:
    repository.git("tag", "v1.2.3")
    repository.commit()
    repository.git("clone", "--quiet", "--depth=1", repository.folder.as_uri(), str(tmp_path / "a"))
    assert build(tmp_path / "a") == (f"0.1.0.dev1+g{repository.head[:9]}", repository.head)


@pytest.mark.parametrize(
    ("tags", "commits", "version"),
    [
        ((), 0, "0.1.0.dev0+g{commit}"),
        (("v1.2.3",), 0, "1.2.3"),
        (("v1.2.3",), 4, "1.3.0.dev4+g{commit}"),
    ],
)
def test_an_archive_has_the_version_of_its_commit(
    repository: Repository, tmp_path: Path, tags: tuple[str, ...], commits: int, version: str
) -> None:
    for tag in tags:
        repository.git("tag", tag)
    for _ in range(commits):
        repository.commit()
    repository.git("archive", "--format=zip", "--output", str(tmp_path / "a.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path / "unpacked")
    commit = repository.head
    assert build(tmp_path / "unpacked") == (version.format(commit=commit[:9]), commit)


def test_a_copy_without_git_does_not_take_the_commit_of_a_repository_around_it(
    repository: Repository,
) -> None:
    inner = repository.folder / "vendored" / "mochi"
    shutil.copytree(repository.folder / "models", inner / "models")
    assert build(inner) == ("0+unknown", "")


def test_without_the_program_git_the_version_is_unknown(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(repository.folder) == ("0+unknown", "")


def test_a_recorded_version_counts_more_than_git(repository: Repository) -> None:
    record = repository.folder / PACKAGE / "record.json"
    record.write_text('{"version": "1.2.3", "commit": "0123abc"}')
    assert build(repository.folder) == ("1.2.3", "0123abc")
    assert str(build(repository.folder)) == "1.2.3 (commit 0123abc)"


def test_the_variables_of_a_build_of_the_images_are_printed_for_export() -> None:
    command = [sys.executable, "-m", "models.version"]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    build = this_build()
    assert ended.stdout == f"BUILD_VERSION={build.version}\nBUILD_REVISION={build.commit}\n"
