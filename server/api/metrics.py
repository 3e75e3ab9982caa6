"""The metrics of `/metrics`, in Prometheus' text format.

Metrics from the broker are the same at every gateway: take the maximum over gateways, not the sum.
Metrics of HTTP are counted by each gateway for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from server.transport.traffic import Traffic
from worker.billing import MILLION
from worker.job import FAILURES
from worker.process.logs import dropped_lines
from worker.store.reports.statistics import Devices, Survey, Times

STEP = "step"
"""Kept among the stages, but shown as a histogram of its own."""


@dataclass(frozen=True)
class Count:
    """A counter that the Lua scripts keep as `kept`. Prometheus adds `_total` to its `name`.

    `known` label values are shown from the start, so that their first rise is seen. Values are
    divided by `unit`.
    """

    kept: str
    name: str
    text: str
    label: str = ""
    known: tuple[str, ...] = ()
    unit: int = 1


COUNTS = (
    Count(
        "submits",
        "mochi_submits",
        "Valid submits, by outcome.",
        "outcome",
        (
            *("accepted", "replayed", "conflict", "no_worker", "key_ended"),
            *("queue_full", "too_many_jobs", "too_few_credits", "too_fast"),
            "over_monthly_cap",
        ),
    ),
    Count(
        "ended",
        "mochi_requests_ended",
        "Ended requests: `completed`, or the error code.",
        "outcome",
        ("completed", *FAILURES),
    ),
    Count(
        "requeues",
        "mochi_requeues",
        "Requests that went back to the queue: their worker was lost, or stopped.",
        "reason",
        ("lost", "stopped"),
    ),
    Count(
        "lost",
        "mochi_lost",
        "Workers lost: in a run (its lease expired), or between the pop and the start of one.",
        "what",
        ("run", "pop"),
    ),
    Count(
        "webhooks",
        "mochi_webhooks_ended",
        "Webhook deliveries that succeeded or were given up.",
        "outcome",
        ("delivered", "given_up"),
    ),
    Count(
        "gpu_ms",
        "mochi_gpu_seconds",
        "GPU time of all runs, including lost and cancelled ones, times the GPUs of each.",
        unit=1000,
    ),
    Count(
        "energy_mj",
        "mochi_energy_joules",
        "Energy of the GPUs of all runs but lost ones, where they count it.",
        unit=1000,
    ),
    Count(
        "cache",
        "mochi_cache_requests",
        "With MOCHI_CACHE: `hit`: the video was kept; `wait`: the run of an equal request made it; "
        "`retimed`: a worker gave a kept one another fps; `miss`: a run began.",
        "outcome",
        ("hit", "wait", "retimed", "miss"),
    ),
    Count("charged", "mochi_credits_charged", "Credits charged for videos.", unit=MILLION),
)


@dataclass(frozen=True)
class Scrape:
    """The metrics of one scrape. `survey` is None when the broker does not answer."""

    version: str
    traffic: Traffic
    survey: Survey | None
    devices: Devices

    def text(self) -> bytes:
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Called by `generate_latest`."""
        yield InfoMetricFamily("mochi_gateway", "This gateway.", {"version": self.version})
        is_up = int(self.survey is not None)
        yield GaugeMetricFamily("mochi_broker_up", "Whether the broker answers.", is_up)
        if self.survey is not None:
            yield from _state(self.survey)
            yield from _devices(self.devices)
            yield from (_counter(count, self.survey) for count in COUNTS)
            yield from _histograms(self.survey)
        yield CounterMetricFamily(
            "mochi_log_lines_dropped",
            "Log lines lost because standard error was not read, or could not be written.",
            dropped_lines(),
        )
        yield from self.traffic.collect()


def _state(survey: Survey) -> Iterator[Metric]:
    oldest, due = survey.oldest_seconds, survey.due_webhooks
    takers = [worker for worker in survey.workers if not worker.pause]
    for name, text, value in (
        ("mochi_waiting_requests", "Waiting requests.", survey.waiting),
        ("mochi_oldest_waiting_seconds", "How long the oldest waiting request has waited.", oldest),
        ("mochi_running_requests", "Running requests.", survey.running),
        (
            "mochi_unfinished_requests",
            "Waiting and running requests, to scale workers by.",
            survey.waiting + survey.running,
        ),
        ("mochi_due_webhooks", "Webhook deliveries that are due or will be retried.", due),
        ("mochi_live_workers", "Live workers that take requests.", len(takers)),
        ("mochi_live_gpus", "Their GPUs.", sum(worker.engine.gpus for worker in takers)),
    ):
        yield GaugeMetricFamily(name, text, value)
    yield from _queues(survey)
    engines = InfoMetricFamily("mochi_worker", "Each live worker and its engine.")
    for worker in survey.workers:
        engine = worker.engine
        engines.add_metric(
            (),
            {
                "worker": worker.name,
                "model": engine.model,
                "device": engine.device,
                "precision": engine.precision,
                "profile": engine.profile,
                "lossy": ",".join(engine.lossy),
                "models": ",".join(worker.models),
            },
        )
    yield engines


def _queues(survey: Survey) -> Iterator[Metric]:
    """The same by the model that clients ask for."""
    queues = survey.queues
    for name, text, values in (
        (
            "waiting_requests",
            "Waiting requests of each model.",
            {model: queue.waiting for model, queue in queues.items()},
        ),
        (
            "oldest_waiting_seconds",
            "How long the oldest waiting request of each model has waited.",
            {model: queue.oldest_seconds for model, queue in queues.items()},
        ),
        (
            "running_requests",
            "Running requests of each model.",
            {model: queue.running for model, queue in queues.items()},
        ),
        (
            "unfinished_requests",
            "Waiting and running requests of each model, to scale its workers by.",
            {model: queue.waiting + queue.running for model, queue in queues.items()},
        ),
        (
            "live_workers",
            "Live workers that take requests of each model.",
            {model: sum(worker.takes(model) for worker in survey.workers) for model in queues},
        ),
    ):
        family = GaugeMetricFamily(f"mochi_model_{name}", text, labels=("model",))
        for model, value in values.items():
            family.add_metric((model,), value)
        yield family


def _devices(devices: Devices) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "mochi_device_memory_bytes",
        "Memory of each GPU of a worker: total, used by all processes; of the first also allocated "
        "by tensors, reserved by the worker.",
        labels=("worker", "gpu", "kind"),
    )
    busy = GaugeMetricFamily(
        "mochi_device_busy_ratio",
        "Recent share of time in which a GPU of a worker was busy.",
        labels=("worker", "gpu"),
    )
    for worker, uses in devices.items():
        for use in uses:
            for kind, size in (
                ("total", use.total_bytes),
                ("used", use.used_bytes),
                ("allocated", use.allocated_bytes),
                ("reserved", use.reserved_bytes),
            ):
                if size is not None:
                    memory.add_metric((worker, use.device, kind), size)
            if use.busy is not None:
                busy.add_metric((worker, use.device), use.busy)
    yield from (memory, busy)


def _counter(count: Count, survey: Survey) -> Metric:
    kept = survey.counts.get(count.kept, {})
    family = CounterMetricFamily(
        count.name, count.text, labels=[count.label] if count.label else []
    )
    for of in (*count.known, *sorted(kept.keys() - {*count.known})) if count.label else ("",):
        family.add_metric([of] if count.label else [], kept.get(of, 0) / count.unit)
    return family


def _histograms(survey: Survey) -> Iterator[Metric]:
    stages = dict(survey.times.get("stage", {}))
    steps = {"": stages.pop(STEP, Times())}
    yield _histogram(
        "mochi_wait_seconds",
        "Time from the submit to the start of the last run, of ended requests.",
        survey.times.get("wait", {"": Times()}),
    )
    yield _histogram(
        "mochi_run_seconds",
        "Duration of runs that made a video.",
        survey.times.get("run", {"": Times()}),
    )
    yield _histogram(
        "mochi_step_seconds", "Denoising step, averaged over the run of a video.", steps
    )
    yield _histogram("mochi_stage_seconds", "Stages of runs that made a video.", stages, "stage")


def _histogram(name: str, text: str, times: Mapping[str, Times], label: str = "") -> Metric:
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for of, each in sorted(times.items()):
        family.add_metric([of] if label else [], _buckets(each), each.total_ms / 1000)
    return family


def _buckets(times: Times) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    buckets = []
    so_far = 0
    for bound, amount in times.counts.items():
        so_far += amount
        buckets.append((str(bound / 1000), float(so_far)))
    return [*buckets, ("+Inf", float(so_far + times.longer))]
