"""The command `mochi-server`. An option here is a setting, `MOCHI_…` in the environment."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from pydantic.fields import FieldInfo

from models.errors import not_installed
from models.params import GenerateParams
from server import VERSION
from server.cli.client import Client
from server.cli.keys import audit, keys
from server.cli.options import (
    DataDir,
    RedisUrl,
    apply_options,
    end,
    errors_end,
    given,
    read_settings,
    running_broker,
    setting,
)
from server.cli.output import check_file, check_folder
from server.cli.top import top as show_top
from server.cli.usage import Form, print_usage
from server.cli.webhooks import webhooks
from server.cli.weights import fetch_missing, pull_weights, verify_weights, weights_folder
from server.cli.workers import drain_workers, list_workers
from server.keys.first import read_first_key
from server.settings import ServerSettings
from server.supervisor import supervise
from tests.bench.events import run as measure_events
from tests.bench.forecast import SPEED as FORECAST_SPEED
from tests.bench.forecast import run as measure_forecast
from tests.bench.gateway import run as measure_gateway
from tests.bench.request import run as measure_request
from tests.chaos.command import run as run_chaos
from tests.chaos.report import Plan
from worker.store.fleet import fleet
from worker.store.presence import worker_name_prefix
from worker.store.usage import KEPT_DAYS, Period

app = typer.Typer(
    help="The Mochi 1 text-to-video API on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(keys, name="keys")
app.command()(audit)
app.add_typer(webhooks, name="webhooks")
workers_app = typer.Typer(help="The workers of a broker.", no_args_is_help=True)
app.add_typer(workers_app, name="workers")
weights_app = typer.Typer(help="The weights of the model.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
bench = typer.Typer(help="Measure this server on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


def _parameter(name: str) -> Any:  # noqa: ANN401 (as typer.Option)
    field: FieldInfo = GenerateParams.model_fields[name]
    shown = f" [default: {field.default}]" if field.default else ""
    return typer.Option("--" + name.replace("_", "-"), help=f"{field.description}{shown}")


Mock = Annotated[bool | None, setting("mock", "--mock")]
Weights = Annotated[str | None, setting("weights")]
Revision = Annotated[str | None, setting("revision")]
Device = Annotated[str | None, setting("device")]
Profile = Annotated[str | None, setting("profile")]
Precision = Annotated[str | None, setting("precision")]
Attention = Annotated[str | None, setting("attention")]
Compile = Annotated[bool | None, setting("compile", "--compile/--no-compile")]
Lora = Annotated[str | None, setting("lora")]
Fp8 = Annotated[bool | None, setting("fp8", "--fp8")]
StepCache = Annotated[float | None, setting("step_cache")]
MockSpeed = Annotated[str | None, setting("mock_speed")]
Host = Annotated[str | None, setting("host")]
Port = Annotated[int | None, setting("port")]
PublicUrl = Annotated[str | None, setting("public_url")]
KeysFile = Annotated[str | None, setting("keys_file")]
TlsCert = Annotated[str | None, setting("tls_cert")]
TlsKey = Annotated[str | None, setting("tls_key")]
TrustedProxies = Annotated[str | None, setting("trusted_proxies")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Docs = Annotated[bool | None, setting("docs", "--docs/--no-docs")]


def _print_version(value: bool) -> None:  # noqa: FBT001 (typer calls it)
    if value:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The Mochi 1 text-to-video API on your own machines."""


@app.command()
def up(
    ctx: typer.Context,
    mock: Mock = None,
    weights: Weights = None,
    revision: Revision = None,
    device: Device = None,
    profile: Profile = None,
    precision: Precision = None,
    attention: Attention = None,
    compile: Compile = None,  # noqa: A002 (an option is named as its setting)
    lora: Lora = None,
    fp8: Fp8 = None,
    step_cache: StepCache = None,
    mock_speed: MockSpeed = None,
    host: Host = None,
    port: Port = None,
    public_url: PublicUrl = None,
    keys_file: KeysFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    trusted_proxies: TrustedProxies = None,
    docs: Docs = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    workers: Annotated[int | None, setting("workers")] = None,
) -> None:
    """Run everything on this machine: broker, gateway and workers.

    Without a GPU: `mochi-server up --mock`

    With one: `mochi-server up`, which fetches the weights the first time

    Faster, with other pictures: `mochi-server up --weights /models/mochi-1-preview --fp8`
    """
    apply_options(ctx)
    settings = read_settings()
    _name_ignored(settings)
    with errors_end(os.EX_CONFIG):
        fetch_missing(settings)
    raise typer.Exit(supervise(settings))


@app.command()
def gateway(
    ctx: typer.Context,
    host: Host = None,
    port: Port = None,
    public_url: PublicUrl = None,
    keys_file: KeysFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    trusted_proxies: TrustedProxies = None,
    docs: Docs = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run a gateway: HTTP in front of a broker that workers share.

    Example: `mochi-server gateway --host 0.0.0.0 --redis-url redis://broker:6379/0`

    With TLS: `mochi-server gateway --tls-cert chain.pem --tls-key key.pem`
    """
    apply_options(ctx)
    _become("server")


@app.command()
def worker(
    ctx: typer.Context,
    mock: Mock = None,
    weights: Weights = None,
    revision: Revision = None,
    device: Device = None,
    profile: Profile = None,
    precision: Precision = None,
    attention: Attention = None,
    compile: Compile = None,  # noqa: A002 (an option is named as its setting)
    lora: Lora = None,
    fp8: Fp8 = None,
    step_cache: StepCache = None,
    mock_speed: MockSpeed = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a worker of this host is alive.")
    ] = False,
) -> None:
    """Run a worker: it holds the model on one GPU and takes requests from the broker.

    Example: `mochi-server worker --device cuda:1 --redis-url redis://broker:6379/0`

    With a LoRA at 80 per cent: `mochi-server worker --lora style.safetensors=0.8`
    """
    apply_options(ctx)
    if check:
        _check_worker()
    _name_ignored(read_settings())
    _become("worker")


@app.command()
def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the MP4.")],
    negative_prompt: Annotated[str | None, _parameter("negative_prompt")] = None,
    guidance_scale: Annotated[float | None, _parameter("guidance_scale")] = None,
    fps: Annotated[float | None, _parameter("fps")] = None,
    frames: Annotated[int | None, _parameter("frames")] = None,
    steps: Annotated[int | None, _parameter("steps")] = None,
    seed: Annotated[int | None, _parameter("seed")] = None,
    url: Annotated[
        str, typer.Option(envvar="MOCHI_URL", help="The server.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MOCHI_API_KEY", help="The key. Without one, that of the data folder is used."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Ask a running server for a video and write it to a file.

    Example: `mochi-server generate "A red panda drinks tea" -o panda.mp4 --frames 31`
    """
    apply_options(ctx)
    asked = {name: value for name, value in given(ctx) if name in GenerateParams.model_fields}
    with errors_end():
        Client(url, api_key or read_first_key(read_settings().data_dir)).generate(asked, output)


@app.command()
def top(
    ctx: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as where there is no terminal.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Queue, workers and requests as they are now, again every second; q or Ctrl-C ends it.

    Example: `mochi-server top --redis-url redis://broker:6379/0`

    For a script: `mochi-server top --once --json`
    """
    apply_options(ctx)
    with errors_end(), running_broker() as redis:
        show_top(redis, once=once, as_json=json)


@workers_app.command("list")
def workers_list(
    ctx: typer.Context, json: Json = False, data_dir: DataDir = None, redis_url: RedisUrl = None
) -> None:
    """Who is alive, and what each works at.

    Example: `mochi-server workers list --redis-url redis://broker:6379/0`
    """
    apply_options(ctx)
    with errors_end(), running_broker() as redis:
        list_workers(redis, as_json=json)


@workers_app.command("drain")
def workers_drain(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="As `workers list` has them.")] = None,
    all: Annotated[  # noqa: A002 (an option)
        bool, typer.Option("--all", help="Every worker that is alive now.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until they have ended.")
    ] = True,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Let workers finish what they run, take no more, and end with exit status 0.

    What supervises them may start new ones then, as `up` does, of another version perhaps.

    Example: `mochi-server workers drain gpu1-4711-1f2e3d4c`
    """
    apply_options(ctx)
    if all == bool(names):
        end("Name the workers to drain, or give --all; `mochi-server workers list` has them.", 2)
    with errors_end(), running_broker() as redis:
        drain_workers(redis, names or [], wait=wait)


@weights_app.command("pull")
def weights_pull(
    ctx: typer.Context,
    weights: Weights = None,
    revision: Revision = None,
    data_dir: DataDir = None,
) -> None:
    """Fetch the weights from the Hugging Face hub and check them. Goes on where it was stopped.

    Without a revision the present one is fetched, and kept. Reads HF_TOKEN and HF_ENDPOINT, too.

    Example: `mochi-server weights pull --data-dir /big/disk`

    A classifier for moderation: `mochi-server weights pull --weights Qwen/Qwen3Guard-Gen-0.6B`
    """
    apply_options(ctx)
    with errors_end():
        pull_weights(read_settings())


@weights_app.command("verify")
def weights_verify(
    ctx: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="That or a copy of it. [default: what was pulled]")
    ] = None,
    weights: Weights = None,
    revision: Revision = None,
    data_dir: DataDir = None,
) -> None:
    """Read all weights again, without a network, and name each file that is not as it was pulled.

    Example: `mochi-server weights verify /models/mochi-1-preview`
    """
    apply_options(ctx)
    with errors_end():
        verify_weights(read_settings(), folder)


@weights_app.command("path")
def weights_path(
    ctx: typer.Context,
    weights: Weights = None,
    revision: Revision = None,
    data_dir: DataDir = None,
) -> None:
    """Print the folder of the weights, alone, on standard output.

    Example: `export MOCHI_WEIGHTS=$(mochi-server weights path)`
    """
    apply_options(ctx)
    with errors_end():
        typer.echo(weights_folder(read_settings()))


@bench.command("gateway")
def bench_gateway(
    connections: Annotated[
        list[int] | None,
        typer.Option(min=1, max=10_000, help="At once; may be repeated. [default: 32, 64]"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For each measurement.")] = 5.0,
    output: Annotated[Path | None, typer.Option("-o", help="Where to write JSON.")] = None,
) -> None:
    """Requests a second, latency and CPU time of the gateway, beside a bare prototype.

    Uses wrk where it is installed. Example: `mochi-server bench gateway --connections 64`
    """
    with errors_end():
        if output is not None:
            check_file(output)
        measure_gateway(connections or [32, 64], seconds, output)


@bench.command("engine")
def bench_engine(
    ctx: typer.Context,
    frames: Annotated[
        list[int] | None,
        typer.Option(min=1, max=160, help="May be repeated. [default: 49]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, max=75, help="Of denoising.")] = 30,
    repeats: Annotated[
        int, typer.Option(min=1, help="Warm requests at each length; the median counts.")
    ] = 3,
    compare: Annotated[
        Literal["stock"] | None,
        typer.Option(help="Measure this beside it: `stock` is the pipeline of diffusers, eager."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="Pretend that the card is only so large."),
    ] = None,
    counts: Annotated[
        bool,
        typer.Option(
            "--counts",
            help="Count launches, bytes and waits of stock and ours, and measure nothing: "
            "needs no GPU.",
        ),
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="As for a worker. [default: dummy, random numbers]")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    profile: Profile = None,
    precision: Precision = None,
    attention: Attention = None,
    compile: Compile = None,  # noqa: A002 (an option is named as its setting)
    lora: Lora = None,
    fp8: Fp8 = None,
    step_cache: StepCache = None,
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option("-o", help="Where to write JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where to write a PNG of it. Needs the extra `bench`.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A folder for a trace of one step, by torch's profiler.")
    ] = None,
) -> None:
    """Seconds of each stage of a request, and how well they use the GPU.

    Beside diffusers: `mochi-server bench engine --frames 49 --frames 160 --compare stock`

    Without a GPU: `mochi-server bench engine --counts`
    """
    if find_spec("torch") is None:
        end(str(not_installed(ModuleNotFoundError("No module named 'torch'"))), os.EX_CONFIG)
    apply_options(ctx)
    settings = read_settings()
    with errors_end():
        for file in filter(None, (output, plot)):
            check_file(file)
        if trace is not None:
            check_folder(trace)
    flags = ["--steps", str(steps), "--repeats", str(repeats)]
    flags += [flag for number in frames or () for flag in ("--frames", str(number))]
    flags += ["--counts"] if counts else []
    for name, value in (
        ("--compare", compare),
        ("--memory", memory),
        ("--output", output),
        ("--plot", plot),
        ("--trace", trace),
        ("--data-dir", settings.data_dir),
    ):
        flags += [] if value is None else [name, str(value)]
    command = [sys.executable, "-P", "-m", "models.mochi.bench", *flags]
    os.execv(sys.executable, command)  # noqa: S606 (no shell)


@bench.command("request")
def bench_request(
    count: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 5,
) -> None:
    """Where the time of the default request goes, on mock weights: denoising, video, all else.

    Example: `mochi-server bench request --count 10`
    """
    with errors_end():
        measure_request(count)


@bench.command("events")
def bench_events(
    clients: Annotated[int, typer.Option(min=2, max=10_000, help="At once.")] = 200,
    requests: Annotated[int, typer.Option(min=1, help="That they follow.")] = 20,
) -> None:
    """What it costs that many follow requests, by events and by polls, with the fake engine.

    Example: `mochi-server bench events --clients 500`
    """
    with errors_end():
        measure_events(clients, requests)


@bench.command("forecast")
def bench_forecast(
    ctx: typer.Context,
    requests: Annotated[int, typer.Option(min=2, help="Of mixed lengths.")] = 50,
    worker_count: Annotated[int, typer.Option("--workers", min=1, max=64)] = 2,
    mock_speed: MockSpeed = None,
    seed: Annotated[int, typer.Option(help="Of lengths and moments.")] = 1,
) -> None:
    """How far off `eta_seconds` is, with the fake engine at the pace of a card: h100/60 by default.

    Example: `mochi-server bench forecast --requests 100 --workers 4`
    """
    apply_options(ctx)
    read_settings()  # which says what is wrong with the speed
    with errors_end():
        measure_forecast(requests, worker_count, mock_speed or FORECAST_SPEED, seed)


@bench.command("chaos")
def bench_chaos(
    ctx: typer.Context,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults come.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the faults: the same seed, the same faults.")] = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Requests in all. [default: 2 a second]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Or: requests a second. [default: 2]")
    ] = None,
    worker_count: Annotated[int, typer.Option("--workers", min=1, max=64, help="At any time.")] = 3,
    lease_seconds: Annotated[float | None, setting("lease_seconds", "--lease")] = None,
    broker: Annotated[
        Literal["embedded", "external"],
        typer.Option(
            help="`embedded`: one of our own, that is killed. `external`: that of MOCHI_REDIS_URL, "
            "with an empty database; the connections of all its clients are dropped."
        ),
    ] = "embedded",
    redis_url: RedisUrl = None,
    output: Annotated[Path | None, typer.Option("-o", help="Where to write JSON.")] = None,
) -> None:
    """Kill workers, gateways and the broker under load, and count what was lost or done twice.

    Starts all of them itself, with the fake engine, in a folder of its own. Exit status 1 when a
    promise was broken; the folder with the logs is kept then.

    Example: `mochi-server bench chaos --seed 7 -o chaos.json`

    Short and hard: `mochi-server bench chaos --seconds 15 --lease 2 --rate 4`

    On a Redis that is there: `mochi-server bench chaos --broker external --redis-url redis://127.0.0.1:6379/9`
    """
    apply_options(ctx)
    settings = read_settings()
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
        workers=worker_count,
        lease_seconds=settings.lease_seconds,
    )
    with errors_end():
        if output is not None:
            check_file(output)
        is_clean = run_chaos(plan, settings.redis_url if broker == "external" else "", output)
    raise typer.Exit(0 if is_clean else 1)


@app.command()
def usage(
    ctx: typer.Context,
    days: Annotated[
        int, typer.Option(min=1, max=KEPT_DAYS, help="Up to today, or up to --last.")
    ] = 30,
    first: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The first day, in UTC; instead of --days."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day, in UTC. [default: today]"),
    ] = None,
    key: Annotated[str, typer.Option(help="Only this one, by name or id.")] = "",
    form: Annotated[Form, typer.Option("--format", help="How it is printed.")] = Form.TABLE,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """What every key used on each day: requests, outcomes, GPU seconds, credits. Kept 400 days.

    Example: `mochi-server usage --days 7`

    For a spreadsheet: `mochi-server usage --first 2026-11-01 --last 2026-11-30 --format csv`
    """
    apply_options(ctx)
    today = datetime.now(UTC).date()
    period = Period.latest(days, today)
    if first or last:
        end = last.date() if last else today
        period = Period(first.date() if first else end - timedelta(days=days - 1), end)
    if len(period.days) not in range(1, KEPT_DAYS + 2):
        raise typer.BadParameter(
            f"From --first to --last, which is today if not given, must be 1 to {KEPT_DAYS} days; "
            f"got {period.first} to {period.last}."
        )
    with errors_end(), running_broker() as redis:
        print_usage(redis, period, form, key)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(VERSION)


def _name_ignored(settings: ServerSettings) -> None:
    if settings.ignored:
        names = ", ".join(settings.ignored)
        typer.secho(f"Without real weights these mean nothing: {names}.", err=True, fg="yellow")


def _become(package: str) -> NoReturn:
    """Replace this process, so that signals and exit status are the real one's."""
    settings = read_settings()
    if not settings.redis_url:
        end(
            "MOCHI_REDIS_URL is empty. Give the Redis or Valkey that gateways and workers share, "
            "like redis://127.0.0.1:6379/0; or run all in one with `mochi-server up`.",
            os.EX_CONFIG,
        )
    # -P: a folder named `server` where the command is typed is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", package])  # noqa: S606 (no shell)


def _check_worker() -> NoReturn:
    """The health check of a worker's container. Exit status 0 when it is alive."""
    with errors_end(), running_broker() as redis:
        names = [worker.name for worker in fleet(redis)]
    here = [name for name in names if name.startswith(worker_name_prefix())]
    typer.echo(", ".join(here) or "no live worker on this host")
    raise typer.Exit(0 if here else 1)
