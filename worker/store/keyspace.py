"""All Redis keys but that of the schema, and the constants of a request's life.

`worker/broker/schema.py` has the number of their format, and says when it changes.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

from rq.job import Job as RqJob
from rq.queue import Queue as RqQueue

from models.request.catalogue import CATALOGUE
from models.request.params import MODEL
from worker.job import LORA


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue, by their names in `lua/common/base.lua`.

    Each model has its own, and one more for its requests with LoRAs. So a release that does not
    know a model or LoRAs leaves those requests alone: it would retry a lost run of one in the queue
    of another, or run it without its LoRAs.

    Attributes:
        waiting: sorted set: ids that are QUEUED, by place in the queue. With a colon and an owner's
            id: of one owner. Of requests with LoRAs also with `:loras`, a set: the choices of LoRAs
            that wait, their names with commas between; with `:loras:` and such a choice: its ids.
        sequence: counter of submits since the queue was empty.
        turns: hash: owner to the place of the last request that was started, since the queue was
            empty.
        leases: sorted set: ids that are PROCESSING, by the broker's time in ms at which their lease
            ends.
        rq_queue: list: ids that a worker may pop.
        intermediate: list: ids that a worker has popped and not started yet.
    """

    waiting: str
    sequence: str
    turns: str
    leases: str
    rq_queue: str
    intermediate: str

    @classmethod
    def of(cls, queue: str = MODEL) -> Self:
        """Those of the default model have no name of a queue in theirs, except RQ's."""
        part = "" if queue == MODEL else f"{queue}:"
        rq_queue = RqQueue.redis_queue_namespace_prefix + queue
        return cls(
            waiting=f"mochi:{part}waiting",
            sequence=f"mochi:{part}sequence",
            turns=f"mochi:{part}turns",
            leases=f"mochi:{part}leases",
            rq_queue=rq_queue,
            intermediate=f"{rq_queue}:intermediate",
        )


WAITING, SEQUENCE, TURNS, LEASES, RQ_QUEUE, RQ_INTERMEDIATE = astuple(QueueKeys.of())
"""Of the default model."""
QUEUES = {queue: QueueKeys.of(queue) for model in CATALOGUE for queue in (model, model + LORA)}
"""By name; see `worker.job.queue_of`."""
SERVED = "mochi:served"
"""Hash that expires: owner to the number of the latest start of its requests by workers of several
queues. Their count is under the empty name."""
LOOKS = "mochi:looks"
"""Hash: when a reconciler looked last, and since when without a gap; in ms."""
PACES = "mochi:paces"
"""Hash: latent frames and engine to the mean pace of runs; ms before the steps, of each step, and
after them."""
PREVIEWS = "mochi:preview:"
"""With a request's id, a string: its latest preview picture, as a data URL."""
WORKERS = "mochi:workers"
"""Sorted set: `presence.LiveWorker`, by the time in ms until which it counts as alive."""
LOADING = "mochi:loading"
"""String that expires: a worker is loading the model."""
SECRETS = "mochi:secrets"
"""Hash: SHA-256 of an API key's secret to the key's id and, after a space, the secret's expiry in
ms, if it has one."""
KEY_NAMES = "mochi:key-names"
"""Hash: names of API keys that are not revoked to their ids."""
IDEMPOTENCY = "mochi:idempotency:"
"""With the digest of an owner and its idempotency key, a hash: the request made with it, and the
fingerprint of the request's body."""
API_KEY = "mochi:key:"
"""With a key's id, a hash: its permissions, limits and account; see `server/keys/record.py`."""
LIVE = "mochi:live:"
"""With an owner's id, a set: ids of its requests that are QUEUED or PROCESSING."""
RATE = "mochi:rate:"
"""With an owner's id, a sorted set: ids submitted in the last minute, by time in ms."""
USAGE = "mochi:usage:"
"""With a day, counted from 1970 in UTC, a hash: usage by `OWNER METRIC`. Among them, which notices
of the owner's budget the day brought."""
METRICS = "mochi:metrics"
"""Hash: counters of all gateways and workers; see `reports/statistics.py`."""
WEBHOOKS = "mochi:webhooks"
"""Sorted set: owners with pending deliveries, by a time in ms no later than the first due one. With
a colon and an owner's id: its pending deliveries, by the time in ms at which they are due (during
an attempt: by the end of its lease). With another colon, a set: those of the requests' own URLs;
with a standing webhook's id behind it, those of that webhook. Their size is limited."""
WEBHOOK = "mochi:webhook:"
"""With the id of a delivery, a hash: the delivery; see `webhooks/deliveries.py`."""
STANDING = "mochi:standing:"
"""With an owner's id, a hash: id to standing webhook, as JSON."""
STANDING_LOG = STANDING + "log:"
"""With the id of a standing webhook, a list: its latest deliveries, the newest first; it expires
with the last one's log."""
HISTORY = "mochi:history:"
"""With an owner's id, a sorted set: ids of its requests, by the time of their submit in us. With a
colon and the id of a deleted request, a string: its place in that set."""
EXPIRIES = "mochi:expiries:"
"""With an owner's id, a sorted set: ids of its ended requests, by their expiry in ms."""
PAST = "mochi:past:"
"""With an owner's id, a stream: its ended requests, for longer than their records; see
`reports/history.py`."""
PAST_TIMES = PAST + "times:"
"""With an owner's id, a sorted set: ids of the requests in that stream, by the time of their end in
ms."""
AUDIT = "mochi:audit"
"""Stream: acts of administrators."""
RESTORE = "mochi:restore"
"""Hash that expires: the backup that is being restored, its last line that is, and the run."""
LINK_SECRET = "mochi:link-secret"  # noqa: S105 (a key's name)
"""String: the key that signs links to videos, shared by all gateways."""

STORE = "mochi:store"
"""String: the mark of the store of videos that gateways read; see `Outputs.mark`."""

MAKERS = "mochi:makers:"
"""With a cache key, a string: id of the request that runs, or whose video is kept; see
`worker/store/lua/common/cache.lua`."""
TWINS = "mochi:twins:"
"""With a cache key, a set: ids of the requests with it that are QUEUED."""
SHARERS = "mochi:sharers:"
"""With a maker's id, a sorted set that expires: ids of the other requests that have its files, by
the time of their own expiry in ms. It expires with the last of them."""

SWEEP = "mochi:sweep:"
"""With the mark of a store of videos, a string that expires: a process has swept it."""

RQ_QUEUES = RqQueue.redis_queues_keys

HEARTBEAT_SECONDS = 0.5
"""Between two heartbeats of a worker; each also carries the progress."""
RECONCILE_SECONDS = 1.0
"""Between two passes of a worker's reconciler."""
LOADING_SECONDS = 5
"""Expiry of the announcement that a worker is loading the model."""
DRAIN_ORDER_SECONDS = 3600
"""Expiry of a drain order."""
PREVIEW_SECONDS = 600
"""Expiry of a preview, if the end of its run does not delete it before."""
MOST_ATTEMPTS = 3
"""Of one request."""
BOUNDS_MS = (
    *(10, 25, 50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 30_000),
    *(60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000),
)
"""Upper bounds of all histograms: from a step of mock weights to the longest run."""


def record(request_id: str) -> str:
    """Hash: the job record."""
    return f"mochi:request:{request_id}"


def webhook_secret(owner: str) -> str:
    """String: signs an owner's deliveries."""
    return f"mochi:webhook-secret:{owner}"


def old_webhook_secret(owner: str) -> str:
    """String that expires: the secret before the last rotation, which also signs."""
    return f"{webhook_secret(owner)}:old"


def gone_with_key(owner: str) -> list[str]:
    """Of a key's owner, the names that a revocation deletes: webhooks and history."""
    prefixes = (STANDING, PAST, PAST_TIMES)
    return [webhook_secret(owner), old_webhook_secret(owner), *(name + owner for name in prefixes)]


def drain_order(worker: str) -> str:
    """String that expires: the worker must finish its request and end."""
    return f"mochi:drain:{worker}"


def device(worker: str) -> str:
    """String that expires: a worker's GPU use, as JSON."""
    return f"mochi:device:{worker}"


def rq_job(request_id: str) -> str:
    """Hash: RQ's record of a job."""
    return RqJob.redis_job_namespace_prefix + request_id


def for_scripts(request_id: str = "") -> list[str]:
    """KEYS of every script, in the order in which `lua/common/base.lua` names them.

    The queue is that of the default model; `use_queue` turns to that of another.
    """
    return [record(request_id), rq_job(request_id), *_FIXED_KEYS]


_FIXED_KEYS = (
    *(WAITING, SEQUENCE, LEASES, WORKERS),
    *(RQ_QUEUE, RQ_INTERMEDIATE, RQ_QUEUES, TURNS, LOOKS),
    *(API_KEY, LIVE, RATE, USAGE, METRICS, PACES, PREVIEWS),
    *(WEBHOOKS, WEBHOOK, HISTORY, EXPIRIES, STORE, PAST, STANDING),
    *(SERVED, MAKERS, TWINS, SHARERS),
)
SCRIPT_KEYS = len(for_scripts())
