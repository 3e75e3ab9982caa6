"""Runs one request: lease, moderation, engine, video, publication, end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import structlog
from opentelemetry.trace import NoOpTracer, Tracer

from models.engine import Clip, EnergyCounter, Engine
from models.errors import (
    ContentBlockedError,
    EncodingError,
    EngineBrokenError,
    EngineError,
    OutOfMemoryError,
)
from models.group import FULL
from models.mock.card_speed import AT_ONCE, MockSpeed
from models.moderation.stages import Moderation
from models.request.params import FORMATS, Still
from models.video.encoding import encode
from models.video.stills import Stills
from worker.errors import BrokerUnavailableError, StorageError
from worker.job import Job, Stage
from worker.outputs.base import Outputs, still_name, video_name
from worker.outputs.retiming import published_stills, retime_published
from worker.pace import USUAL, Pace, Work, pace_for
from worker.process.shutdown import Stop
from worker.provenance.label import description
from worker.provenance.marker import Marker
from worker.runtime.checkpoints import RunCheckpoints
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.mock_outcome import MockOutcome, early_expiry, warnings_of
from worker.runtime.run import EndedEarly, LeaseLost, Requeued, Run, RunEnergy, RunPreviews, timed
from worker.runtime.spans import note_failure, note_params, traced
from worker.store.worker_side import Lease, Result, WorkerStore

REFUSED_PAUSE_SECONDS = 1.0
"""Between tries to write a result that the broker refuses."""
REFUSED_SECONDS = 600.0
"""After which such a result is given up."""
LOSSY = "The speed mode {} is on, which changes the picture."
"""Warning for every video of an engine with a lossy speed mode."""

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Holds the engine and runs one request at a time.

    Attributes:
        worker: its name.
        run_seconds: time limit of a run.
        checkpoint_steps: from one checkpoint to the next; 0 saves none.
        preview_steps: from one preview to the next; 0 makes none.
        speed: of a mock engine.
        marker: marks videos as made by AI; None for none.
        energy: of the cards; None where they have no counter.
    """

    worker: str
    engine: Engine
    store: WorkerStore
    outputs: Outputs
    heartbeat: Heartbeat
    moderation: Moderation
    stop: Stop
    run_seconds: float
    checkpoint_steps: int = 0
    preview_steps: int = 0
    speed: MockSpeed = AT_ONCE
    marker: Marker | None = None
    energy: EnergyCounter | None = None
    tracer: Tracer = field(default_factory=NoOpTracer)

    def run(self, request_id: str) -> None:
        """Take the lease, make the video, publish the file, then complete the record.

        Raises:
            EngineBrokenError: this process can generate nothing any more.
            BrokerUnavailableError: the broker refuses to write; the lease expires.
            OtherStoreError: no gateway could serve the video; the request waits on.
        """
        lease, traits = Lease(request_id, uuid4().hex[:12]), self.engine.traits
        live = self.heartbeat.worker
        job = self.store.start(lease, self.worker, live.store, traits.gpus, live.identity)
        if job is None:
            return
        energy = RunEnergy(self.energy)
        run = Run(lease, self.run_seconds, self.stop, job.attempt, self._pace(job), energy)
        run.may_have_checkpoint = bool(self.checkpoint_steps or job.draft_steps)
        with (
            structlog.contextvars.bound_contextvars(**run.log_fields),
            traced(self.tracer, job, run, self.worker, traits.device),
        ):
            self._run(job, run)

    def _run(self, job: Job, run: Run) -> None:
        _log.info("run.started", key_id=job.owner, queue_seconds=job.queue_seconds)
        self.heartbeat.current_run = run
        try:
            with run.watched(), run.energy.counted():
                result = self._make_video(job, run)
        except LeaseLost:
            _log.warning("run.lost")
            note_failure("lease_lost")
        except Requeued:
            self._requeue(run)
        except EndedEarly as end:
            self._fail(run, end.error_code, end.error)
        except StorageError as error:
            self._fail(run, "storage", str(error))
        except EngineBrokenError:
            # The request does not end: when the lease expires, another worker retries it.
            _log.exception("engine.broken", step=run.step)
            raise
        except EngineError as error:
            self._fail_in_engine(run, error)
        except Exception:  # noqa: BLE001 (the next request may succeed)
            _log.exception("run.bug")
            self._fail(run, "internal", "The worker failed on this request; its log says why.")
        else:
            self._complete(job, run, result)
        finally:
            self.heartbeat.current_run = None

    def requeue_popped(self, request_id: str) -> None:
        """Put back a request that was popped during shutdown; its attempt does not count."""
        lease = Lease(request_id, uuid4().hex[:12])
        if self.store.start(lease, self.worker) is not None:
            self.store.requeue(lease)

    def fail_out_of_memory(self) -> None:
        """Fail the running request from another thread, as its own may wait for a GPU for ever."""
        run = self.heartbeat.current_run
        if run is not None:
            with structlog.contextvars.bound_contextvars(**run.log_fields):
                self._fail(run, OutOfMemoryError.code, FULL)

    def _make_video(self, job: Job, run: Run) -> Result:
        note_params(job.params)
        name = video_name(job.request_id, run.lease.run, job.files.format)
        stills = Stills.of(job.files, job.params.frames)
        draft = self.outputs.draft(name)
        self.moderation.check_prompt(job.params.prompt)
        run.check()  # moderation may take long
        if job.source and (result := self._retimed(job, run, name, draft)):
            return result
        seconds: dict[str, float] = {}
        traits = self.engine.traits
        on_step = MockOutcome(job, run, self.speed).on_step if traits.is_mock else run.on_step
        checkpoints, stop_after = self._checkpoints(job, run), job.draft_steps or None
        with timed("denoising", seconds):
            clip = self.engine.generate(
                job.params, on_step, checkpoints, self._previews(run), stop_after
            )
        if checkpoints:
            checkpoints.warn_if_unused()
        seconds["step"] = run.step_seconds
        with timed("video", seconds):
            also = {*stills.places.values()}
            clip = stills.watching(self.moderation.moderated(clip, job.params.frames, also))
            clip = replace(clip, frames=run.checked(clip.frames, job.params.frames))
            if self.marker:
                clip = self.marker.described(clip, traits.model)
            self._encode(clip, job, draft)
        files = stills.taken
        if self.marker:
            with timed("marking", seconds):
                files = self._marked(self.marker, job, draft, stills.taken)
        parts = {name: took for name, took in seconds.items() if name != "step"}
        _log.info("run.encoded", **{f"{name}_seconds": round(parts[name], 3) for name in parts})
        run.enter(Stage.PUBLISHING)
        with timed("publishing", seconds):
            size = self._publish(name, files)
        sizes = {still: len(data) for still, data in files.items()}
        warnings = self._warnings(job, clip)
        return Result(name, size, traits.precision, warnings, seconds, stills=sizes)

    def _retimed(self, job: Job, run: Run, name: str, draft: Path) -> Result | None:
        """The video of a kept one that differs in its fps; None if that cannot be read."""
        traits, seconds = self.engine.traits, dict[str, float]()
        asked = Stills.of(job.files, job.params.frames)
        about = {
            "comment": self.engine.comment(job.params),
            "description": description(traits.model) if self.marker else "",
        }
        run.enter(Stage.ENCODING_VIDEO)
        try:
            with timed("video", seconds):
                retime_published(self.outputs, job.source, draft, job.params.fps, **about)
                stills = published_stills(self.outputs, job.source, asked.places)
        except (EncodingError, OSError, StorageError) as error:
            draft.unlink(missing_ok=True)
            if self.stop.draining:
                raise Requeued from None  # as in `_encode`; a run would take minutes
            _log.warning("video.not_retimed", source=job.source, reason=str(error))
            return None
        if self.marker:
            with timed("marking", seconds):
                self.marker.mark(draft, traits.model, job.params.prompt)
        run.enter(Stage.PUBLISHING)
        with timed("publishing", seconds):
            size = self._publish(name, stills)
        _log.info("run.retimed", source=job.source)
        return Result(
            *(name, size, traits.precision, tuple(json.loads(job.source_warnings)), seconds),
            stills={still: len(data) for still, data in stills.items()},
            source_ms=job.source_ms,
        )

    def _marked(
        self, marker: Marker, job: Job, draft: Path, stills: Mapping[Still, bytes]
    ) -> dict[Still, bytes]:
        """Mark the draft, in place, and the stills. An error leaves no file."""
        model, prompt = self.engine.traits.model, job.params.prompt
        marker.mark(draft, model, prompt, FORMATS[job.files.format])
        try:
            return {
                still: marker.marked_still(jpeg, model, prompt) for still, jpeg in stills.items()
            }
        except StorageError:
            draft.unlink(missing_ok=True)
            raise

    def _publish(self, name: str, stills: Mapping[Still, bytes]) -> int:
        """Publish the stills, then the video, by whose name the record finds them."""
        try:
            for still, data in stills.items():
                self.outputs.save_still(still_name(name, still), data)
            return self.outputs.publish(name)
        except StorageError:
            if stills:
                self.outputs.remove(name)  # the sweeper would, too, but later
            raise

    def _encode(self, clip: Clip, job: Job, draft: Path) -> None:
        try:
            encode(clip, job.params.fps, draft, job.files.format)
        except EncodingError:
            if self.stop.draining:
                raise Requeued from None  # a signal to all processes has ended ffmpeg, too
            raise

    def _pace(self, job: Job) -> Pace:
        """The pace that earlier runs let expect."""
        measured = self.store.paces(self.engine.traits)
        return pace_for(Work.of(job.params).latent_frames, measured) or USUAL

    def _checkpoints(self, job: Job, run: Run) -> RunCheckpoints | None:
        if not (run.may_have_checkpoint or job.draft_of):
            return None
        return RunCheckpoints(self.outputs, run, self.checkpoint_steps, job.draft_of)

    def _previews(self, run: Run) -> RunPreviews | None:
        """None where frames are moderated: a preview would show them unmoderated."""
        if not self.preview_steps or self.moderation.frame_judge is not None:
            return None
        return RunPreviews(run, self.preview_steps)

    def _warnings(self, job: Job, clip: Clip) -> tuple[str, ...]:
        traits = self.engine.traits
        lossy = (LOSSY.format(name) for name in traits.lossy)
        return (*clip.warnings, *warnings_of(job, is_mock=traits.is_mock), *lossy)

    def _complete(self, job: Job, run: Run, result: Result) -> None:
        pace = None if job.scenario or result.source_ms is not None else run.measured()
        result = replace(result, joules=run.energy.joules)
        if self._write_completed(run.lease, result):
            _log.info("run.completed", bytes=result.file_size)
            if not job.draft_steps:  # its finish begins there
                self._remove_checkpoint(run)
            if pace:
                self.store.note_pace(self.engine.traits, Work.of(job.params), pace)
            self._remove_early(job, result)
        else:
            # Its owner may have deleted it between a lost reply and the retry: twins have the file.
            if not self.store.has_twins(run.lease.request_id):
                self.outputs.remove(result.file_name)
            _log.warning("run.late")
            note_failure("lease_lost")

    def _remove_early(self, job: Job, result: Result) -> None:
        """For the mock scenario `expire`. If the worker dies first, the files are swept."""
        seconds = early_expiry(job)
        if seconds is not None:
            timer = threading.Timer(seconds, self._remove_files, [job, result])
            timer.daemon = True
            timer.start()

    def _remove_files(self, job: Job, result: Result) -> None:
        self.outputs.remove(result.file_name)
        if job.draft_steps:
            self.outputs.remove_checkpoint(job.request_id)

    def _write_completed(self, lease: Lease, result: Result) -> bool:
        """Retry while the broker takes no writes or is away: the video took minutes of GPU time."""
        deadline = time.monotonic() + REFUSED_SECONDS
        is_first = True
        while True:
            try:
                return self.store.complete(lease, result)
            except BrokerUnavailableError as error:
                if error.is_refusal or self.stop.urgent or time.monotonic() > deadline:
                    raise
                if is_first:
                    _log.warning("run.refused", reason=error.reason, for_seconds=REFUSED_SECONDS)
                is_first = False
                time.sleep(REFUSED_PAUSE_SECONDS)

    def _requeue(self, run: Run) -> None:
        if not run.is_requeued:
            _log.info("run.requeued", step=run.step)
        note_failure("requeued")
        self.store.requeue(run.lease, run.energy.joules)

    def _fail_in_engine(self, run: Run, error: EngineError) -> None:
        if isinstance(error, ContentBlockedError):
            _log.warning("run.blocked", stage=error.stage, category=error.category)
        self._fail(run, error.code, str(error))
        if error.ends_worker:
            raise EngineBrokenError("This worker must end after its request.") from error

    def _fail(self, run: Run, code: str, error: str) -> None:
        note_failure(code)
        is_ours = self.store.fail(run.lease, code, error, run.energy.joules)
        _log.warning("run.failed", error_code=code, reason=error)
        if is_ours:
            self._remove_checkpoint(run)

    def _remove_checkpoint(self, run: Run) -> None:
        """Only the run that has ended the request may."""
        if run.may_have_checkpoint:
            self.outputs.remove_checkpoint(run.lease.request_id)
