"""Cuts a release of the repository in the working directory: what `scripts/release` runs.

All is made in a temporary clone. Only when nothing is left that can fail do commit, tag and files
come into the repository.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
BRANCH = "main"
UNRELEASED = "## Unreleased\n"
CHANGELOG = "CHANGELOG.md"
IMAGES = ("gateway", "worker")
SUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """What keeps the release from being cut, and the remedy."""


@dataclass(frozen=True)
class Plan:
    """What is asked for on the command line."""

    tag: str
    registry: str
    images: bool
    sign: bool
    dry_run: bool

    @property
    def version(self) -> str:
        return self.tag.removeprefix("v")


def main() -> int:
    """Cut the release and return the exit status."""
    plan = parse_options()
    repository = Path.cwd()
    try:
        check(repository, plan)
        with tempfile.TemporaryDirectory(prefix="mochi-release-") as folder:
            source, made = Path(folder, "source"), Path(folder, plan.tag)
            notes = commit(repository, source, plan)
            make_files(source, made, plan)
            write_papers(source, made, plan, notes)
            if plan.images:
                build_images(source, plan)
            print((made / SUMS).read_text(), end="")
            if not plan.dry_run:
                take_over(repository, source, made, plan)
    except ReleaseError as error:
        sys.stderr.write(f"scripts/release: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("scripts/release: stopped. The repository is as it was.\n")
        return 130
    print_next_steps(plan)
    return 0


def parse_options() -> Plan:
    """The options; `scripts/release` explains them."""
    parser = argparse.ArgumentParser(prog="scripts/release", usage="scripts/release --help")
    parser.add_argument("tag")
    parser.add_argument("--registry", default="")
    for name in ("--images", "--sign", "--dry-run"):
        parser.add_argument(name, action="store_true")
    return Plan(**vars(parser.parse_args()))


def check(repository: Path, plan: Plan) -> None:
    """Raise ReleaseError unless this release can be cut from this repository."""
    if not TAG.fullmatch(plan.tag):
        raise ReleaseError(f"a release is called like v0.2.0, not {plan.tag}.")
    if (branch := git(repository, "branch", "--show-current")) != BRANCH:
        raise ReleaseError(f"releases are cut from {BRANCH}, not from {branch or 'no branch'}.")
    if changes := git(repository, "status", "--porcelain"):
        raise ReleaseError(f"commit or remove these changes first:\n{changes}")
    tags = [tag for tag in git(repository, "tag", "--list").split() if TAG.fullmatch(tag)]
    if tags and number(plan.tag) <= (latest := max(map(number, tags))):
        last = "v" + ".".join(map(str, latest))
        raise ReleaseError(f"{last} is released already: take a higher version than that.")
    split_changelog((repository / CHANGELOG).read_text())
    if not plan.dry_run and (repository / "dist" / plan.tag).exists():
        raise ReleaseError(f"dist/{plan.tag} is there already: remove it.")
    if shutil.which("helm") is None:
        raise ReleaseError("the chart needs Helm on PATH. Type: scripts/helm")
    if plan.images:
        run("docker", "version", cwd=repository)


def number(tag: str) -> tuple[int, ...]:
    return tuple(map(int, tag.removeprefix("v").split(".")))


def split_changelog(text: str) -> tuple[str, str, str]:
    """What stands before the section Unreleased, in it, and from the release before on.

    Raises:
        ReleaseError: the section is missing or empty.
    """
    before, found, after = text.partition(UNRELEASED)
    section, heading, older = after.partition("\n## ")
    if not found or not re.search(r"^- ", section, re.MULTILINE):
        raise ReleaseError(
            f"{CHANGELOG} needs a section `{UNRELEASED.strip()}` that lists what has changed."
        )
    return before, section.strip(), (heading + older).lstrip()


def commit(repository: Path, source: Path, plan: Plan) -> str:
    """Clone the repository to `source`; date its changes, commit and tag there. The changes."""
    git(repository, "clone", "--quiet", "--branch", BRANCH, str(repository), str(source))
    for name in ("user.name", "user.email", "user.signingkey"):
        if value := git(repository, "config", "--default", "", "--get", name):
            git(source, "config", name, value)
    changelog = source / CHANGELOG
    before, section, older = split_changelog(changelog.read_text())
    today = datetime.now(UTC).date().isoformat()
    heading = f"## {plan.version} - {today}"
    changelog.write_text(
        "\n".join([f"{before}{UNRELEASED}", heading, "", section, *(["", older] if older else [])])
        .rstrip() + "\n"
    )  # fmt: skip
    git(source, "commit", "--quiet", "--message", f"Release {plan.version}", CHANGELOG)
    how = "--sign" if plan.sign else "--annotate"
    git(source, "tag", how, "--message", f"Release {plan.version}", plan.tag)
    return section


def make_files(source: Path, made: Path, plan: Plan) -> None:
    """Build sdist, wheel and chart from the tag that is checked out in `source`."""
    build(source, made, plan)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        again = Path(folder, "source")
        git(source, "clone", "--quiet", "--branch", plan.tag, str(source), str(again))
        build(again, Path(folder, "made"), plan)
        compare(made, Path(folder, "made"))


def write_papers(source: Path, made: Path, plan: Plan, notes: str) -> None:
    """Write the provenance, the notes and the checksums of all files."""
    statement = provenance(source, made, plan)
    (made / "provenance.intoto.json").write_text(json.dumps(statement, indent=2) + "\n")
    (made / "RELEASE_NOTES.md").write_text(f"# {plan.tag}\n\n{notes}\n")
    lines = [f"{digest}  {name}\n" for name, digest in digests(made).items()]
    (made / SUMS).write_text("".join(lines))
    if plan.sign:
        run("gpg", "--batch", "--armor", "--detach-sign", str(made / SUMS), cwd=source)


def build(source: Path, made: Path, plan: Plan) -> None:
    """Make sdist, wheel and chart without network: the environment has the tools."""
    epoch = git(source, "log", "-1", "--format=%ct")
    hatchling = (sys.executable, "-m", "hatchling", "build")
    run(*hatchling, "-t", "sdist", "-d", str(made), cwd=source, SOURCE_DATE_EPOCH=epoch)
    [sdist] = made.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as files:
            files.extractall(folder, filter="data")
        [unpacked] = Path(folder).iterdir()
        run(*hatchling, "-t", "wheel", "-d", str(made), cwd=unpacked, SOURCE_DATE_EPOCH=epoch)
    version = ("--version", plan.version, "--app-version", plan.version)
    with tempfile.TemporaryDirectory() as folder:
        run("helm", "package", "docker/chart", *version, "--destination", folder, cwd=source)
        [package] = Path(folder).iterdir()
        repack(package, made / package.name, int(epoch))


def repack(package: Path, target: Path, epoch: int) -> None:
    """Give all files of a .tgz one time: Helm takes the clock's, or that of the checkout."""
    with (
        tarfile.open(package) as files,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w") as anew,
    ):
        for member in files:
            member.mtime = epoch
            anew.addfile(member, files.extractfile(member))


def compare(made: Path, again: Path) -> None:
    first, second = digests(made), digests(again)
    if first != second:
        differ = ", ".join(name for name in first if first[name] != second.get(name))
        raise ReleaseError(f"two builds of the same commit differ: {differ or list(second)}.")


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name, in order."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def provenance(source: Path, made: Path, plan: Plan) -> dict[str, Any]:
    """An in-toto statement of what was built from which commit by which tools.

    See https://slsa.dev/spec/v1.0/provenance. It is not signed by itself: `--sign` signs the
    checksums, of which that of the statement is one.
    """
    needs = map(Requirement, metadata.requires("hatchling") or ())
    names = ("hatchling", *(it.name for it in needs if not it.marker or it.marker.evaluate()))
    tools = [f"pkg:pypi/{name}@{metadata.version(name)}" for name in names]
    commit = {
        "name": f"mochi-server {plan.tag}",
        "digest": {"gitCommit": git(source, "rev-parse", "HEAD")},
    }
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in digests(made).items()
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:mochi-server:release",
                "externalParameters": {"tag": plan.tag},
                "internalParameters": {
                    "SOURCE_DATE_EPOCH": git(source, "log", "-1", "--format=%ct"),
                    "python": platform.python_version(),
                    "helm": run("helm", "version", "--short", cwd=source),
                },
                "resolvedDependencies": [commit, *({"uri": tool} for tool in tools)],
            },
            "runDetails": {
                "builder": {"id": "urn:mochi-server:maintainers-machine"},
                "metadata": {"finishedOn": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"},
            },
        },
    }


def image_builds(repository: Path, plan: Plan) -> list[list[str]]:
    """The commands that build the images of the tag."""
    revision, created = git(repository, "log", "-1", "--format=%H %cI", plan.tag).split()
    prefix = f"{plan.registry}/" if plan.registry else ""
    return [
        ["docker", "build", "--build-arg", f"VERSION={plan.version}",
         "--build-arg", f"REVISION={revision}", "--build-arg", f"CREATED={created}",
         "--target", target, "--tag", f"{prefix}mochi-server-{target}:{plan.version}", "."]
        for target in IMAGES
    ]  # fmt: skip


def build_images(source: Path, plan: Plan) -> None:
    for command in image_builds(source, plan):
        print(f"$ {shlex.join(command)}")
        if subprocess.run(command, cwd=source, check=False).returncode:
            raise ReleaseError("the image was not built.")


def take_over(repository: Path, source: Path, made: Path, plan: Plan) -> None:
    """Bring commit, tag and files into the repository, or none of them."""
    git(repository, "fetch", "--quiet", "--no-tags", str(source), f"refs/tags/{plan.tag}")
    tag = git(source, "rev-parse", plan.tag)
    target = repository / "dist" / plan.tag
    try:
        shutil.copytree(made, target)
        git(repository, "update-ref", f"refs/tags/{plan.tag}", tag, "")
        git(repository, "merge", "--quiet", "--ff-only", plan.tag)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if git(repository, "tag", "--list", plan.tag):
            git(repository, "update-ref", "-d", f"refs/tags/{plan.tag}", tag)
        if isinstance(error, OSError):
            raise ReleaseError(f"{target} cannot be written: {error}") from None
        raise


def print_next_steps(plan: Plan) -> None:
    if plan.dry_run:
        print(f"{plan.tag} can be released. This was a dry run: the repository is as it was.")
        return
    images = image_builds(Path.cwd(), plan)
    print(
        f"{plan.tag} is committed and tagged here; its files are in dist/{plan.tag}. Undo it with:"
    )
    print(f"  git tag --delete {plan.tag} && git reset --keep HEAD~1 && rm -r dist/{plan.tag}")
    if not plan.images:
        print("The images are built with:")
        print(f"  git checkout {plan.tag}")
        for command in images:
            print(f"  {shlex.join(command)}")
    print("Publish it with:")
    print(f"  git push --atomic origin {BRANCH} {plan.tag}")
    print(f"  twine upload dist/{plan.tag}/*.whl dist/{plan.tag}/*.tar.gz")
    if not plan.registry:
        print("Images and chart go to a registry: `--registry` prints the commands with its name.")
        return
    for command in images:
        print(f"  docker push {command[-2]}")
    chart = f"dist/{plan.tag}/mochi-server-{plan.version}.tgz"
    print(f"  helm push {chart} oci://{plan.registry}/charts")


def git(repository: Path, *arguments: str) -> str:
    return run("git", *arguments, cwd=repository)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """The output of a command.

    Raises:
        ReleaseError: it failed, or is not installed.
    """
    try:
        ended = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | environment,
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise ReleaseError(f"{command[0]} is not installed.") from None
    if ended.returncode:
        told = (ended.stderr + ended.stdout).strip()
        raise ReleaseError(f"`{shlex.join(command)}` failed:\n{told}")
    return ended.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
