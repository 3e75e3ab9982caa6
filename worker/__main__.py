"""Entry point of the worker process, which `mochi-server worker` starts."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

import structlog
from opentelemetry.trace import NoOpTracer, Tracer

from models.build import build_energy_counter, build_engine, build_meter
from models.engine import EnergyCounter, Engine, Meter
from models.errors import EngineBrokenError, EngineUnavailableError
from models.group import Leader
from models.mock.card_speed import MockSpeed
from models.moderation.build import build_moderation
from models.moderation.stages import Moderation
from models.request.params import MODEL
from models.version import this_build
from models.video.encoding import encoder
from worker.broker.connection import (
    Client,
    check_schema_at_start,
    connect_briefly,
    connect_worker,
)
from worker.broker.health import BrokerLog
from worker.errors import (
    BrokerUnavailableError,
    OutputsUnusableError,
    ProvenanceUnusableError,
    SchemaError,
    StorageError,
    TracingUnusableError,
)
from worker.outputs.base import Outputs
from worker.outputs.factory import open_outputs
from worker.outputs.identity import identity_of
from worker.process.logs import before_end, configure_logs, end_at_once, say
from worker.process.parent_watch import WITH_PARENT, watch_parent
from worker.process.shutdown import Stop
from worker.process.systemd import Notifier
from worker.process.telemetry import start_tracing
from worker.provenance.marker import Marker, open_marker
from worker.runtime.background import (
    loading,
    read_mark,
    start_encoding_ahead,
    start_gpu_reporter,
    start_mark_reader,
    start_sweeper,
)
from worker.runtime.followers import end_full, leading
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.runtime.rq_worker import EngineWorker
from worker.runtime.runner import Runner
from worker.settings import WorkerSettings
from worker.store.presence import LiveWorker, new_worker_name
from worker.store.worker_side import WorkerStore

OUTPUTS_SECONDS = 60.0
"""Longest call to an output store on the network; less if `stall_seconds` is short."""
CHECK_SECONDS = 5.0
"""Longest call of the check at the start."""
RETRY_SECONDS = 1.0
"""Between two checks."""
INTERRUPTED = 128 + signal.SIGINT

_log = structlog.get_logger()


def main() -> NoReturn:
    name = new_worker_name()
    configure_logs(worker=name)
    notifier = Notifier.take(os.environ)
    if WITH_PARENT in sys.argv[1:]:
        watch_parent()
    settings = WorkerSettings()
    try:
        with leading(settings) as leader:
            status = run(name, settings, leader, notifier)
    except KeyboardInterrupt:  # before it is ready; a worker that is drains
        status = INTERRUPTED
    except BaseException:  # noqa: BLE001 (a bug must not end the process in another way)
        _log.exception("exception.uncaught")
        status = os.EX_TEMPFAIL
    # Destructors of a group may wait for a broken card without end, and Python aborts at its exit
    # where a thread is at work in torch.
    end_at_once(status)


def run(name: str, settings: WorkerSettings, leader: Leader | None, notifier: Notifier) -> int:
    """Load the model, and work until told to stop.

    Returns:
        The exit status: 0 when told to stop, 78 (`EX_CONFIG`) where only a change of settings or of
        this machine helps, else 75 (`EX_TEMPFAIL`): another start may help.
    """
    try:
        check_schema_at_start(settings.redis_url)
        tracing = start_tracing(os.environ, "mochi-server-worker", name)
        before_end(tracing.stop)
        outputs = usable_outputs(settings)
        marker = open_marker(settings)
        encoder()  # without ffmpeg every request would fail at its end
        notifier.starting("Loading the model")
        with loading(_store(settings, connect_briefly(settings.redis_url))):
            moderation = build_moderation(settings, settings.data_dir)
            engine = build_engine(settings, settings.data_dir, leader)
    except (
        EngineUnavailableError,
        OutputsUnusableError,
        ProvenanceUnusableError,
        SchemaError,
        TracingUnusableError,
    ) as error:
        say(str(error), "error")
        return os.EX_CONFIG  # the supervisor does not start it again
    except EngineBrokenError as error:
        _log.exception("engine.broken", reason=str(error))
        return os.EX_TEMPFAIL
    _log.info("worker.ready", engine=str(engine.traits), marks=str(marker or "none"))
    was_told = work(
        name,
        engine,
        moderation,
        outputs,
        settings,
        marker=marker,
        leader=leader,
        meter=build_meter(settings),
        energy=build_energy_counter(settings),
        tracer=tracing.tracer,
        notifier=notifier,
    )
    _log.info("worker.stopped")
    return 0 if was_told else os.EX_TEMPFAIL


def usable_outputs(settings: WorkerSettings) -> Outputs:
    """The output store, once it answers: a run that ends while it is away fails.

    Raises:
        OutputsUnusableError: the settings must be corrected.
    """
    probe = open_outputs(settings, patience_seconds=CHECK_SECONDS)
    while True:
        try:
            probe.check()
            break
        except StorageError as error:
            _log.warning("outputs.away", reason=str(error), again_in=RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)
    # A publication must end before the watchdog counts it as a hang.
    patience = min(OUTPUTS_SECONDS, settings.stall_seconds / 2)
    return open_outputs(settings, patience_seconds=patience)


def work(
    name: str,
    engine: Engine,
    moderation: Moderation,
    outputs: Outputs,
    settings: WorkerSettings,
    *,
    marker: Marker | None = None,
    leader: Leader | None = None,
    meter: Meter | None = None,
    energy: EnergyCounter | None = None,
    tracer: Tracer | None = None,
    notifier: Notifier | None = None,
) -> bool:
    """Assemble the worker and run it until it is told to stop.

    Returns:
        Whether it was told to stop; otherwise a bug ended it, which the log shows.
    """
    stop = Stop(settings.drain_seconds)
    notifier = notifier or Notifier()
    models = tuple(model.slug for model in settings.served)
    marks = f"{settings.provenance}, {marker}, prompt: {settings.c2pa_prompt}"
    live = LiveWorker(
        name,
        engine.traits,
        version=this_build().version,
        models=models,
        identity=identity_of(engine, settings, marks),
    )
    brief_store = _store(settings, connect_briefly(settings.redis_url), live.sources)
    _warn_of_other_loras(brief_store, live)
    reconciler = Reconciler(brief_store, lease_seconds=settings.lease_seconds)
    heartbeat = Heartbeat(
        live,
        brief_store,
        reconciler,
        BrokerLog(settings.redis_url),
        stall_seconds=settings.stall_seconds,
        stop=stop,
        alive_file=settings.alive_file,
        notifier=notifier,
    )
    runner = Runner(
        worker=name,
        engine=engine,
        store=_store(
            settings,
            connect_worker(settings.redis_url, is_over=lambda: stop.urgent),
            live.sources,
        ),
        outputs=outputs,
        heartbeat=heartbeat,
        moderation=moderation,
        run_seconds=settings.run_seconds,
        checkpoint_steps=settings.checkpoint_steps,
        preview_steps=settings.preview_steps,
        speed=MockSpeed.parse(settings.mock_speed, engine.traits.gpus),
        marker=marker,
        energy=energy,
        stop=stop,
        tracer=tracer or NoOpTracer(),
    )
    if leader is not None:
        leader.on_full = partial(end_full, fail=runner.fail_out_of_memory)
    connection = connect_worker(
        settings.redis_url, is_over=lambda: stop.draining, decode_responses=False
    )
    worker = EngineWorker(name, runner, connection, stop=stop, sources=live.sources)
    read_mark(outputs, heartbeat)
    start_mark_reader(outputs, heartbeat)
    start_sweeper(brief_store, outputs, retention_seconds=settings.retention_seconds)
    if settings.encode_ahead and engine.encode_ahead is not None:
        start_encoding_ahead(engine.encode_ahead, brief_store, heartbeat, stop)
    if meter is not None:
        start_gpu_reporter(name, meter, brief_store, lambda: heartbeat.current_run)
    heartbeat.start()
    try:
        worker.work()
        return stop.draining
    finally:
        heartbeat.stop()
        notifier.stopping()


def _warn_of_other_loras(store: WorkerStore, live: LiveWorker) -> None:
    """Requests name LoRAs: under one name, all workers should have the same numbers."""
    with suppress(BrokerUnavailableError):
        for other in store.live_workers():
            for name, digest in live.engine.loras.items():
                if other.engine.loras.get(name, digest) != digest:
                    _log.warning("lora.differs", lora=name, worker=other.name)


def _store(
    settings: WorkerSettings, redis: Client, sources: Sequence[str] = (MODEL,)
) -> WorkerStore:
    return WorkerStore(
        redis,
        lease_seconds=settings.lease_seconds,
        retention_seconds=settings.retention_seconds,
        sources=sources,
    )


if __name__ == "__main__":
    main()
