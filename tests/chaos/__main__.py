"""The chaos run: `python -m tests.chaos`, in the root of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli.output import check_file
from tests.support.commands import exit_on_error, load_settings_with

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def chaos(
    *,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults are injected.")] = 60.0,
    seed: Annotated[
        int, typer.Option(help="Seed of the faults; the same seed injects the same faults.")
    ] = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of requests. [default: 2 a second]")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, help="Requests a second, instead of --jobs. [default: 2]"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers that run at a time.")] = 3,
    groups: Annotated[
        int,
        typer.Option(min=0, help="Workers of these that are groups of two, on mock weights."),
    ] = 0,
    lease: Annotated[
        float | None, typer.Option(help="Lease in seconds; overrides MOCHI_LEASE_SECONDS.")
    ] = None,
    broker: Annotated[
        Literal["embedded", "external"],
        typer.Option(
            help="`embedded`: one of the run's own, which is killed. `external`: the one of "
            "MOCHI_REDIS_URL, with an empty database; the connections of all clients are dropped."
        ),
    ] = "embedded",
    redis_url: Annotated[
        str | None, typer.Option(help="URL of the broker; overrides MOCHI_REDIS_URL.")
    ] = None,
    upgrade_from: Annotated[
        str,
        typer.Option(
            metavar="REF",
            help="Instead of faults: replace every process of that git ref by one of this "
            "checkout, and go back. [default: faults]",
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write JSON to this file.")
    ] = None,
) -> None:
    """Kill workers, gateways and the broker under load; count lost and duplicated requests.

    Starts all processes itself, with the fake engine, in a folder of its own. Exit status 1 when a
    promise was broken; the folder with the logs is kept then.

    Example: `python -m tests.chaos --seed 7 -o chaos.json`

    Short and hard: `python -m tests.chaos --seconds 15 --lease 2 --rate 4`

    An upgrade from a release and the rollback: `python -m tests.chaos --upgrade-from v0.1.0`

    On an existing Redis: `python -m tests.chaos --broker external --redis-url redis://127.0.0.1:6379/9`
    """
    from tests.chaos.command import run  # noqa: PLC0415 (`--help` needs none of it)
    from tests.chaos.report import Plan  # noqa: PLC0415

    settings = load_settings_with(lease_seconds=lease, redis_url=redis_url)
    if jobs is not None and rate is not None:
        raise typer.BadParameter("Give either --jobs or --rate.")
    if broker == "external" and not settings.redis_url:
        raise typer.BadParameter(
            "--broker external needs --redis-url, or MOCHI_REDIS_URL, like redis://127.0.0.1:6379/9."
        )
    plan = Plan(
        seconds=seconds,
        seed=seed,
        jobs=jobs or max(1, round(seconds * (rate or 2))),
        workers=workers,
        lease_seconds=settings.lease_seconds,
        groups=groups,
        upgrade_from=upgrade_from,
    )
    with exit_on_error():
        if output is not None:
            check_file(output)
        is_clean = run(plan, settings.redis_url if broker == "external" else "", output)
    raise typer.Exit(0 if is_clean else 1)


if __name__ == "__main__":
    app(prog_name="python -m tests.chaos")
