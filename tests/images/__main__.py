"""Builds and tries the images: `scripts/images`, in the root of the repository."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal, NoReturn

import typer

from models.version import this_build
from tests.images import checks
from tests.images.engine import ImagesError, Project, choose_engine, run
from worker.process.shutdown import on_signals

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Report:
    """A line for each check, as it ends."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, name: str, ask: Callable[[], str], *, is_secret: bool = False) -> str:
        """Run a check; what it saw, or nothing when it failed."""
        began = time.monotonic()
        typer.echo(f"{name} … ", nl=False)
        try:
            seen = ask()
        except Exception as error:  # noqa: BLE001 (the other checks go on)
            self.failed.append(name)
            typer.secho(f"FAILED after {time.monotonic() - began:.0f} s", fg="red")
            typer.echo(f"  {error}")
            return ""
        typer.secho(f"ok, {time.monotonic() - began:.0f} s", fg="green", nl=False)
        typer.echo("" if is_secret else f": {seen}")
        return seen


def labels() -> dict[str, str]:
    """What `git` tells the build; compose.yaml passes it on."""
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return this_build().variables | {"BUILD_CREATED": created}


@app.command()
def images(
    *,
    engine: Annotated[
        Literal["docker", "podman"] | None,
        typer.Option(help="[default: docker, or podman where no daemon answers]"),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also build the worker with torch: some 6 GB, without a run."),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave containers, volumes and images for a look.")
    ] = False,
) -> None:
    """Build both images, run the mock stack of Compose, and try what an operator relies on.

    It needs Docker with Compose and BuildKit, or podman with podman-compose; no GPU. Everything has
    a name of its own, on free ports of this machine, and is removed at the end. Exit status 1 when
    a check fails.

    Example: `scripts/images`

    With podman: `scripts/images --engine podman`
    """
    try:
        chosen = engine or choose_engine()
    except ImagesError as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(1) from None
    project = Project(chosen, f"mochi-images-{os.getpid()}", variables=labels())
    typer.echo(f"{run([chosen, '--version'])}; project {project.name}")
    report = Report()
    on_signals(_interrupt, signal.SIGTERM, signal.SIGHUP)
    try:
        _try(project, report, full=full)
    finally:
        if not keep:
            report.check("clean up", project.remove)
    if report.failed:
        typer.secho(f"FAILED: {', '.join(report.failed)}", err=True, fg="red")
        raise typer.Exit(1)
    typer.echo("All checks passed.")


def _interrupt(*_: object) -> NoReturn:
    """As Ctrl-C, so that everything is removed."""
    raise KeyboardInterrupt


def _try(project: Project, report: Report, *, full: bool) -> None:
    check = report.check
    check("profiles", lambda: checks.profiles(project))
    check("build", lambda: checks.build(project))
    if full:
        check("worker with torch", lambda: checks.build_full(project))
    if report.failed:
        return
    check("labels and SBOM", lambda: checks.labels_and_sbom(project))
    if not check("start", lambda: checks.start(project)):
        return
    key = check("key", lambda: checks.make_key(project), is_secret=True)
    check("hardening", lambda: checks.hardening(project))
    link = check("video by the SDK", lambda: checks.video(project, key))
    check("health", lambda: checks.health(project))
    check("kill -9 of the worker", lambda: checks.killed(project, key, "worker"))
    check("kill -9 of the broker", lambda: checks.killed(project, key, "valkey"))
    check("restart of the gateway under load", lambda: checks.restart(project, key))
    check("volumes", lambda: checks.volumes(project, key, link))
    check("two gateways", lambda: checks.scaled(project))


if __name__ == "__main__":
    app()
