"""The command `mochi-server`. A command's module is loaded when the command runs."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from models.version import this_build


class Entry(NamedTuple):
    """A command in `--help`, and its module in this package, where it has the same name."""

    module: str
    panel: str
    summary: str


COMMANDS = {
    "up": Entry("processes", "Run", "Run everything on this machine: broker, gateway and workers."),
    "gateway": Entry(
        "processes", "Run", "Run a gateway: the HTTP API in front of a shared broker."
    ),
    "worker": Entry(
        "processes", "Run", "Run a worker: one model on one GPU or more, fed by a shared broker."
    ),
    "generate": Entry(
        "generate", "Ask", "Ask a running server for a video and write it to a file."
    ),
    "finish": Entry(
        "generate", "Ask", "Run the steps that a draft has left, and write the video to a file."
    ),
    "wrap": Entry(
        "hosted.wrap", "Ask", "Run a program whose calls to the hosted API reach a local server."
    ),
    "keys": Entry("administer.keys", "Administer", "Manage API keys: scopes, limits and credits."),
    "workers": Entry("administer.workers", "Administer", "List and drain workers."),
    "webhooks": Entry(
        "administer.webhooks", "Administer", "List, replay and sign webhook deliveries."
    ),
    "weights": Entry(
        "administer.weights", "Administer", "Pull, verify and locate the weights of the model."
    ),
    "provenance": Entry(
        "administer.provenance",
        "Administer",
        "Verify marks of AI in videos, and print the certificate to trust.",
    ),
    "backup": Entry(
        "administer.backup",
        "Administer",
        "Write keys, balances, webhooks, usage and history to a file.",
    ),
    "restore": Entry("administer.backup", "Administer", "Read a backup into the broker."),
    "audit": Entry(
        "administer.keys",
        "Administer",
        "List administrators' changes to keys, workers and webhooks.",
    ),
    "top": Entry("top", "Measure", "Show queue, workers and requests live."),
    "usage": Entry("usage", "Measure", "Show each API key's usage by day."),
    "compare": Entry(
        "hosted.compare",
        "Measure",
        "Ask the hosted API and a local server, and compare the answers.",
    ),
    "bench": Entry("processes", "Measure", "Benchmark the engine on this machine."),
}


class LazyGroup(TyperGroup):
    """Shows `COMMANDS` in its help, and loads the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 (as in `load`)
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:  # noqa: ANN401 (of a class that typer keeps to itself)
    """The command `name` itself, with its options; its module is imported."""
    found = getattr(import_module(f"server.cli.{COMMANDS[name].module}"), name)
    # After the program that `wrap` runs come that program's options, also without a `--`.
    parsing = {"allow_interspersed_args": name != "wrap"}
    parent = typer.Typer(rich_markup_mode="markdown")
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name)
    else:
        parent.command(name, context_settings=parsing)(found)
    return typer.main.get_group(parent).commands[name]


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},  # of all commands
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(value: bool) -> None:  # noqa: FBT001 (typer calls it)
    if value:
        typer.echo(this_build())
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print version and commit."
        ),
    ] = False,
) -> None:
    """The Mochi 1 text-to-video API on your own machines.

    Without a GPU: `mochi-server up --mock`

    In another terminal: `mochi-server generate "A red panda drinks tea"`
    """
    # Of 2, it leaves out the docstrings that transformers builds its models from.
    os.environ.pop("PYTHONOPTIMIZE", None)


@app.command(hidden=True)
def version() -> None:
    """Print version and commit. Example: `mochi-server version`."""
    _print_version(value=True)


def _in_help_only() -> None:
    """Stand for a command whose module is not loaded."""


for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.summary, rich_help_panel=_entry.panel)(_in_help_only)
