"""The worker's side of the job store: leases, heartbeats, ends, and recovery after crashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import astuple, dataclass, field
from enum import StrEnum
from typing import Any

from redis import Redis

from models.engine import DeviceUse, Traits
from models.request.catalogue import CATALOGUE
from models.request.params import MODEL, GenerateParams, Still
from worker.broker.connection import broker_errors
from worker.broker.health import dangers_in
from worker.errors import OtherStoreError
from worker.job import Job, Stage, Status
from worker.pace import Pace, Work, read_paces
from worker.store import keyspace, scripts
from worker.store.presence import LiveWorker, read_all
from worker.store.reports.statistics import DEVICE_USES
from worker.store.scripts import outcome, pairs, was_done

_SCRIPTS = (
    *("start", "beat", "finish", "requeue", "reap", "recover"),
    *("overdue", "note_pace", "preview", "peek", "alive"),
)
_LOST = f"The worker that ran this request died, on each of {keyspace.MOST_ATTEMPTS} attempts."


@dataclass(frozen=True)
class Lease:
    """The right of one run to write to a record. `run` is a unique fencing token."""

    request_id: str
    run: str


@dataclass(frozen=True)
class Result:
    """A completed run, for its record; see `Job`."""

    file_name: str
    file_size: int
    precision: str = ""
    warnings: tuple[str, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of `denoising` (with the prompt), `video` (decoding and encoding, which overlap),
    `marking` (as made by AI, unless that is off) and `publishing`, and the mean of one `step`; for
    /metrics."""
    joules: float | None = None
    """Energy of all cards; None where they do not count it."""
    stills: Mapping[Still, int] = field(default_factory=dict)
    """Size of each still in bytes."""
    source_ms: int | None = None
    """Milliseconds of all GPUs in another run, if that made the frames; see `Job.source`."""


@dataclass(frozen=True)
class Overdue:
    """What a reconciler may have to repair.

    Attributes:
        expired: ids that are PROCESSING and whose lease has expired.
        popped: ids popped from RQ's queue and not started.
        missing: number of waiting requests in neither of RQ's lists.
        watched_seconds: for how long reconcilers have called this without a gap.
    """

    expired: list[str]
    popped: list[str]
    missing: int
    watched_seconds: float


class Order(StrEnum):
    """An answer to a heartbeat."""

    LOST = "lost"
    """The run has lost its lease, or its record is gone."""
    CANCEL = "cancel"
    """The client has cancelled the request."""
    DRAIN = "drain"
    """Finish the run and end the process."""


class Recovery(StrEnum):
    """Outcome for a request whose worker died."""

    REQUEUED = "requeued"
    FAILED = "failed"


class WorkerStore:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float,
        retention_seconds: float,
        sources: Sequence[str] = (MODEL,),
    ) -> None:
        """`sources`: from which the worker takes requests; see `LiveWorker`."""
        self._redis = redis
        self._sources = sources
        self._lease_ms = round(lease_seconds * 1000)
        self._retention_ms = round(retention_seconds * 1000)
        self._scripts = {name: redis.register_script(scripts.source(name)) for name in _SCRIPTS}

    def live_workers(self) -> list[LiveWorker]:
        """The workers that are alive and have the model loaded."""
        return read_all(self._run("alive", ""))

    def peek(self) -> tuple[str, GenerateParams] | None:
        """Id and parameters of the request that the next pop takes, if nothing changes before."""
        found = self._run("peek", "", *self._sources)
        if found is None:
            return None
        request_id, model, params = found
        return request_id, CATALOGUE[model or MODEL].parameters.model_validate_json(params)

    def start(
        self,
        lease: Lease,
        worker: str,
        store_mark: str = "",
        gpus: int = 1,
        identity: str = "",
    ) -> Job | None:
        """QUEUED -> PROCESSING. None when the request is gone, has ended, or runs elsewhere.

        None, too, while the same video is made for another request: if that is COMPLETED, so is
        this one; otherwise it can be popped again.

        Raises:
            OtherStoreError: gateways do not read the store with this mark; the request waits on.
        """
        record = self._run(
            *("start", lease.request_id, lease.run, worker, self._lease_ms, store_mark, gpus),
            identity,
            *self._sources,
        )
        if record == "other_store":
            raise OtherStoreError
        return None if record is None else Job.from_record(lease.request_id, dict(pairs(record)))

    def beat(
        self,
        worker: LiveWorker,
        lease: Lease | None = None,
        step: int = 0,
        stage: Stage = Stage.ENCODING_PROMPT,
        progress: int = 0,
        *,
        takes_more: bool = True,
    ) -> frozenset[Order]:
        """Renew the worker's presence and, with a lease, the run's lease and progress.

        Args:
            worker: withdraw an earlier record of the same worker after this one.
            lease: of the present run.
            step: denoising steps done.
            stage: of the run.
            progress: per cent of the run.
            takes_more: whether the worker will take further requests.
        """
        request_id, run = (lease.request_id, lease.run) if lease else ("", "")
        arguments = (str(worker), self._lease_ms, run, step, int(takes_more))
        order = keyspace.drain_order(worker.name)
        orders = self._run("beat", request_id, *arguments, order, stage, progress)
        return frozenset(outcome(Order, "beat", each) for each in orders)

    def report_devices(self, worker: str, uses: Sequence[DeviceUse]) -> None:
        """Publish the use of a worker's GPUs. It expires with a lease."""
        report = DEVICE_USES.dump_json(uses)
        with broker_errors():
            self._redis.set(keyspace.device(worker), report, px=self._lease_ms)

    def announce_loading(self) -> None:
        """Publish that a worker is loading the model; repeat it until it is loaded."""
        with broker_errors():
            self._redis.set(keyspace.LOADING, "", ex=keyspace.LOADING_SECONDS)

    def end_loading(self) -> None:
        """Withdraw it; other workers that are loading the model repeat theirs."""
        with broker_errors():
            self._redis.delete(keyspace.LOADING)

    def withdraw(self, worker: LiveWorker) -> None:
        """Remove a record that a heartbeat has replaced."""
        with broker_errors():
            self._redis.zrem(keyspace.WORKERS, str(worker))

    def sign_off(self, worker: LiveWorker) -> None:
        self.withdraw(worker)
        with broker_errors():
            self._redis.delete(keyspace.drain_order(worker.name))

    def complete(self, lease: Lease, result: Result) -> bool:
        """PROCESSING -> COMPLETED, after the file is published. False if the lease was lost."""
        return self._finish(
            lease,
            Status.COMPLETED,
            result.joules,
            *("file_name", result.file_name),
            *("file_size", result.file_size),
            *("precision", result.precision),
            *("warnings", json.dumps(result.warnings)),
            *(() if result.source_ms is None else ("cached", 1, "cached_gpu_ms", result.source_ms)),
            *(part for still, size in result.stills.items() for part in (f"{still}_size", size)),
            *(
                part
                for stage, seconds in result.stages.items()
                for part in (f"{stage}_ms", round(1000 * seconds))
            ),
        )

    def fail(self, lease: Lease, error_code: str, error: str, joules: float | None = None) -> bool:
        """PROCESSING -> FAILED, with a text for the client. False if the lease was lost."""
        return self._finish(lease, Status.FAILED, joules, "error_code", error_code, "error", error)

    def preview(self, lease: Lease, step: int, picture: str) -> None:
        """Publish a preview picture, a data URL."""
        kept_ms = 1000 * keyspace.PREVIEW_SECONDS
        self._run("preview", lease.request_id, lease.run, kept_ms, step, picture)

    def note_pace(self, engine: Traits, work: Work, pace: Pace) -> None:
        """Add a run's speed to the data of forecasts."""
        milliseconds = (1000 * seconds for seconds in astuple(pace))
        runs_like_it = f"{work.latent_frames} {engine}"
        self._run("note_pace", "", runs_like_it, *map(str, milliseconds))

    def paces(self, engine: Traits) -> dict[int, Pace]:
        """The speeds of an engine's runs, by latent frames."""
        with broker_errors():
            kept: Any = self._redis.hgetall(keyspace.PACES)
        return read_paces(kept.items(), {str(engine)})

    def requeue(self, lease: Lease, joules: float | None = None) -> bool:
        """PROCESSING -> QUEUED, first in the queue; the attempt does not count, its energy does."""
        answer = self._run(
            "requeue", lease.request_id, lease.run, self._retention_ms, _millijoules(joules)
        )
        return was_done("requeue", answer)

    def reap(self, request_id: str) -> Recovery | None:
        """Another attempt, or FAILED, for a run whose lease has expired; None if it has not."""
        return self._recovery("reap", request_id)

    def recover(self, request_id: str) -> Recovery | None:
        """The same for a request popped and not started, or missing from RQ's lists."""
        return self._recovery("recover", request_id)

    def overdue(self, gateway: str = "") -> Overdue | None:
        """Call it every `RECONCILE_SECONDS`.

        Args:
            gateway: a unique id, if a gateway asks. It gets None while a worker or another gateway
                asks.
        """
        longest_gap_ms = round(keyspace.RECONCILE_SECONDS * 1000) + self._lease_ms // 2
        answer = self._run("overdue", "", self._lease_ms, longest_gap_ms, gateway)
        if answer is None:
            return None
        found = dict(pairs(answer))
        return Overdue(
            found["expired"], found["popped"], found["missing"], found["watched_ms"] / 1000
        )

    def unlisted(self) -> list[str]:
        """Waiting ids in neither of RQ's lists. Linear in the queue's length."""
        with broker_errors():
            # No transaction: `recover` checks each again.
            pipeline = self._redis.pipeline(transaction=False)
            for queue in keyspace.QUEUES.values():
                pipeline.zrange(queue.waiting, 0, -1)
                pipeline.lrange(queue.rq_queue, 0, -1)
                pipeline.lrange(queue.intermediate, 0, -1)
            found = pipeline.execute()
        lists = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [
            request_id
            for waiting, queued, popped in lists
            for request_id in _without(waiting, {*queued, *popped})
        ]

    def dangers(self) -> list[str]:
        """See `dangers_in`."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.info()
        pipeline.config_get("appendfsync")
        with broker_errors():
            return dangers_in(pipeline.execute(raise_on_error=False))

    def claim_sweep(self, mark: str, seconds: float) -> bool:
        """Whether the caller is the one to sweep the store with this mark for so long."""
        with broker_errors():
            claimed = self._redis.set(keyspace.SWEEP + mark, "", nx=True, px=round(1000 * seconds))
        return claimed is True

    def exists(self, request_id: str) -> bool:
        """Whether the record has not expired, or that of a request with the same files."""
        keys = (keyspace.record(request_id), keyspace.SHARERS + request_id)
        with broker_errors():
            return bool(self._redis.exists(*keys))

    def has_twins(self, request_id: str) -> bool:
        """Whether other requests were completed with the files of this one."""
        with broker_errors():
            return bool(self._redis.exists(keyspace.SHARERS + request_id))

    def _finish(
        self, lease: Lease, status: Status, joules: float | None, *fields: str | int
    ) -> bool:
        arguments = (lease.run, status, self._retention_ms, _millijoules(joules))
        answer = self._run("finish", lease.request_id, *arguments, *fields)
        return was_done("finish", answer)

    def _recovery(self, script: str, request_id: str) -> Recovery | None:
        answer = self._run(script, request_id, keyspace.MOST_ATTEMPTS, self._retention_ms, _LOST)
        return None if answer is None else outcome(Recovery, script, answer)

    def _run(self, script: str, request_id: str, *args: str | int) -> Any:  # noqa: ANN401 (each has its own answer)
        """Every script takes all keys, and the id before its own arguments."""
        keys = [_as_read(key) for key in keyspace.for_scripts(request_id)]
        with broker_errors():
            return self._scripts[script](keys=keys, args=[_as_read(request_id), *args])


def _millijoules(joules: float | None) -> int | str:
    """As scripts take them: whole, or empty for an unknown number."""
    return "" if joules is None else round(1000 * joules)


def _without(ids: Iterable[str], others: Set[str]) -> Iterator[str]:
    return (each for each in ids if each not in others)


def _as_read(text: str) -> bytes:
    """The bytes in the broker, also of what is not UTF-8."""
    return text.encode("utf-8", "surrogateescape")
