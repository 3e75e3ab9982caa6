"""Every Redis key that we touch, and the constants of the life cycle that are no settings."""

from __future__ import annotations

from rq.job import Job as RqJob
from rq.queue import Queue as RqQueue

from models.params import MODEL

QUEUE = MODEL
"""The RQ queue; there is one per model."""

WAITING = "mochi:waiting"
"""Sorted set: ids that are QUEUED, by place in the queue. One of the same kind for each owner has
the owner's id after a colon."""
SEQUENCE = "mochi:sequence"
"""Counter of submits since the queue was empty."""
TURNS = "mochi:turns"
"""Hash: owner to the place of the last request that was started, since the queue was empty."""
LEASES = "mochi:leases"
"""Sorted set: ids that are PROCESSING, by the broker's time in ms at which their lease ends."""
LOOKS = "mochi:looks"
"""Hash: when somebody looked for overdue requests last, and since when without a gap; in ms."""
PACES = "mochi:paces"
"""Hash: latent frames to how fast the last runs of so many were; ms before the steps, of each step,
and after them."""
PREVIEWS = "mochi:preview:"
"""With a request's id, a string: what its video looks like so far, as a data URL."""
WORKERS = "mochi:workers"
"""Sorted set: workers with the model loaded, each with what its engine is (see `live.py`), by the
time in ms until which they count as alive."""
SECRETS = "mochi:secrets"
"""Hash: SHA-256 of an API key's secret to the key's id, and, after a space, the broker's time in ms
until which it is good, where that is limited."""
KEY_NAMES = "mochi:key-names"
"""Hash: name of an API key that is not revoked to its id."""
API_KEY = "mochi:key:"
"""With a key's id, a hash: what the key may do, and its account; see `server/keys/record.py`."""
LIVE = "mochi:live:"
"""With an owner's id, a set: ids of its requests that are QUEUED or PROCESSING."""
RATE = "mochi:rate:"
"""With an owner's id, a sorted set: what it submitted in the last minute, by the broker's time in
ms."""
USAGE = "mochi:usage:"
"""With a day, counted from 1970 in UTC, a hash: what was used on it, by `OWNER METRIC`."""
METRICS = "mochi:metrics"
"""Hash: sums since ever, of all gateways and workers; see `metrics.py`."""
WEBHOOKS = "mochi:webhooks"
"""Sorted set: owners to whom deliveries are owed, by the broker's time in ms at which one may be
due, never later than that. One for each owner has its id after a colon: ids of ended requests that
somebody is to be told of, by the time at which that is due; while it is tried, is due again."""
WEBHOOK = "mochi:webhook:"
"""With a request's id, a hash: the delivery; see `webhooks.py`."""
HISTORY = "mochi:history:"
"""With an owner's id, a sorted set: ids of its requests that are kept, by the broker's time in us
at which they were submitted."""
EXPIRIES = "mochi:expiries:"
"""With an owner's id, a sorted set: ids of its requests that have ended, by the broker's time in ms
at which they are forgotten."""
AUDIT = "mochi:audit"
"""Stream: what administrators did."""
LINK_SECRET = "mochi:link-secret"  # noqa: S105 (a key's name)
"""String: what signs the links to videos, shared by all gateways."""

RQ_QUEUES = RqQueue.redis_queues_keys
RQ_QUEUE = RqQueue.redis_queue_namespace_prefix + QUEUE
"""List: ids that a worker may pop."""
RQ_INTERMEDIATE = RQ_QUEUE + ":intermediate"
"""List: ids that a worker has popped and not started yet."""

HEARTBEAT_SECONDS = 0.5
"""Between two heartbeats of a worker; each also carries the progress."""
RECONCILE_SECONDS = 1.0
"""Between two passes of a worker's reconciler."""
DRAIN_ORDER_SECONDS = 3600
"""A worker that has not read its order by then is not going to."""
PREVIEW_SECONDS = 600
"""After which a preview goes of itself; it goes with the run mostly."""
MOST_ATTEMPTS = 3
"""A request is started at most so often."""
BOUNDS_MS = (
    *(10, 25, 50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 30_000),
    *(60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000),
)
"""Upper bounds of all histograms: from a step of mock weights to the longest run."""


def record(request_id: str) -> str:
    """Hash: the job record."""
    return f"mochi:request:{request_id}"


def api_key(key_id: str) -> str:
    """Hash: see `API_KEY`."""
    return API_KEY + key_id


def live(owner: str) -> str:
    """Set: see `LIVE`."""
    return LIVE + owner


def usage(day: int) -> str:
    """Hash: see `USAGE`."""
    return f"{USAGE}{day}"


def idempotency_key(digest: str) -> str:
    """Hash: the request that was first made with an idempotency key, and its fingerprint."""
    return f"mochi:idempotency:{digest}"


def webhooks(owner: str) -> str:
    """Sorted set: see `WEBHOOKS`."""
    return f"{WEBHOOKS}:{owner}"


def webhook_secret(owner: str) -> str:
    """String: what signs the deliveries for an API key's owner."""
    return f"mochi:webhook-secret:{owner}"


def old_webhook_secret(owner: str) -> str:
    """String, there for a while after a rotation: what signs them as well."""
    return f"{webhook_secret(owner)}:old"


def drain_order(worker: str) -> str:
    """String, there for a while: this worker is to finish what it runs, and end."""
    return f"mochi:drain:{worker}"


def device(worker: str) -> str:
    """String, there for a while: how much of its card a worker uses, as JSON."""
    return f"mochi:device:{worker}"


def preview(request_id: str) -> str:
    """String: see `PREVIEWS`."""
    return PREVIEWS + request_id


def rq_job(request_id: str) -> str:
    """Hash: what RQ keeps of a job."""
    return RqJob.redis_job_namespace_prefix + request_id


def for_scripts(request_id: str = "") -> list[str]:
    """The KEYS of every script, in the order that `lua/common.lua` gives them names."""
    return [
        record(request_id),
        rq_job(request_id),
        WAITING,
        SEQUENCE,
        LEASES,
        WORKERS,
        RQ_QUEUE,
        RQ_INTERMEDIATE,
        RQ_QUEUES,
        TURNS,
        LOOKS,
        API_KEY,
        LIVE,
        RATE,
        USAGE,
        METRICS,
        PACES,
        PREVIEWS,
        WEBHOOKS,
        WEBHOOK,
        HISTORY,
        EXPIRIES,
    ]


SCRIPT_KEYS = len(for_scripts())
"""How many they are."""
