"""What `/metrics` shows, in Prometheus' text format.

Two kinds. What the broker knows is the same at every gateway: take the maximum over gateways, not
the sum. What came over HTTP is counted by each gateway for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from models.device import DeviceUse
from server.transport.traffic import Traffic
from worker.billing import MILLION
from worker.store.statistics import Survey, Times

STEP = "step"
"""Among the stages, but a part of one."""


@dataclass(frozen=True)
class Count:
    """A counter that the scripts keep.

    Attributes:
        kept: its name there.
        name: what Prometheus adds `_total` to.
        text: one line for people.
        label: what it is counted by; empty: nothing.
        known: values of the label that are there from the start, so that the first rise is seen.
        unit: how many of what is kept make one of what is shown.
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
        "Submits that were read and checked, by what became of them.",
        "outcome",
        (
            *("accepted", "replayed", "conflict", "no_worker", "key_ended"),
            *("queue_full", "too_many_jobs", "too_few_credits", "too_fast"),
        ),
    ),
    Count(
        "ended",
        "mochi_requests_ended",
        "Requests that have ended: `completed`, or by the code of the failure.",
        "outcome",
        (
            *("completed", "content_blocked", "cancelled", "out_of_memory"),
            *("worker_lost", "timeout", "storage", "internal"),
        ),
    ),
    Count(
        "requeues",
        "mochi_requeues",
        "Requests that went back to the queue: their worker was lost, or had to stop.",
        "reason",
        ("lost", "given_back"),
    ),
    Count(
        "lost",
        "mochi_lost",
        "Workers that fell silent: in a run, whose lease ended, or between a pop and its start.",
        "what",
        ("run", "pop"),
    ),
    Count(
        "webhooks",
        "mochi_webhooks_ended",
        "Webhooks that were delivered or given up.",
        "outcome",
        ("delivered", "given_up"),
    ),
    Count("gpu_ms", "mochi_gpu_seconds", "Of all runs, lost and cancelled ones too.", unit=1000),
    Count("charged", "mochi_credits_charged", "Credits charged for videos.", unit=MILLION),
)


class Gathered:
    """All of one scrape. `survey` is None when the broker is away."""

    def __init__(
        self, version: str, traffic: Traffic, survey: Survey | None, devices: dict[str, DeviceUse]
    ) -> None:
        self._version = version
        self._traffic = traffic
        self._survey = survey
        self._devices = devices

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """For `generate_latest`."""
        yield InfoMetricFamily("mochi_gateway", "This gateway.", {"version": self._version})
        yield _gauge(
            "mochi_broker_up", "Whether the broker answers.", int(self._survey is not None)
        )
        if self._survey is not None:
            yield from _state(self._survey)
            yield from _devices(self._devices)
            yield from (_counter(count, self._survey) for count in COUNTS)
            yield from _histograms(self._survey)
        yield from self._traffic.collect()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _state(survey: Survey) -> Iterator[Metric]:
    yield _gauge("mochi_waiting_requests", "Requests that wait.", survey.waiting)
    yield _gauge(
        "mochi_oldest_waiting_seconds",
        "How long the oldest of those that wait has waited.",
        survey.oldest_seconds,
    )
    yield _gauge("mochi_running_requests", "Requests that run.", survey.running)
    yield _gauge("mochi_due_webhooks", "Webhooks that are still owed.", survey.due_webhooks)
    yield _gauge("mochi_live_workers", "Workers that take requests.", len(survey.workers))
    engines = InfoMetricFamily("mochi_worker", "Each live worker, and its engine.")
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
            },
        )
    yield engines


def _devices(devices: dict[str, DeviceUse]) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "mochi_device_memory_bytes",
        "Memory of a worker's card: what its tensors have, what it keeps, all there is.",
        labels=("worker", "kind"),
    )
    busy = GaugeMetricFamily(
        "mochi_device_busy_ratio",
        "Share of the last moments in which a worker's card worked.",
        labels=("worker",),
    )
    for worker, use in devices.items():
        memory.add_metric((worker, "allocated"), use.allocated_bytes)
        memory.add_metric((worker, "reserved"), use.reserved_bytes)
        memory.add_metric((worker, "total"), use.total_bytes)
        if use.busy is not None:
            busy.add_metric((worker,), use.busy)
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
        "From a submit to the start of its last run, of requests that have ended.",
        survey.times.get("wait", {"": Times()}),
    )
    yield _histogram(
        "mochi_run_seconds",
        "Runs that made a video, from start to end.",
        survey.times.get("run", {"": Times()}),
    )
    yield _histogram(
        "mochi_step_seconds", "A step of denoising, on average over the run of a video.", steps
    )
    yield _histogram(
        "mochi_stage_seconds", "The stages of the runs that made a video.", stages, "stage"
    )


def _histogram(name: str, text: str, times: Any, label: str = "") -> Metric:  # noqa: ANN401
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for of, each in sorted(times.items()):
        family.add_metric([of] if label else [], _buckets(each), each.total_ms / 1000)
    return family


def _buckets(times: Times) -> list[tuple[str, float]]:
    """Each bucket of Prometheus' holds those before it, too."""
    buckets = []
    so_far = 0
    for bound, amount in times.counts.items():
        so_far += amount
        buckets.append((str(bound / 1000), float(so_far)))
    return [*buckets, ("+Inf", float(so_far + times.longer))]
