"""One idempotency key of one client: the same key with the same body makes one request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker import keyspace


@dataclass(frozen=True)
class Idempotency:
    """What the broker is asked to compare.

    Attributes:
        key: of the broker.
        fingerprint: of the body that came with it.
    """

    key: str
    fingerprint: str

    @classmethod
    def of(cls, owner: str, key: str, body: Mapping[str, Any]) -> Idempotency:
        """The key that `owner` has given for the JSON object `body`.

        Hashed, as a client may put anything into it; each owner has keys of its own. The body, not
        what we read in it: another version of ours must not take a retry for another request.
        """
        digest = _digest(f"{owner} {key}")
        return cls(keyspace.idempotency_key(digest), _digest(json.dumps(body, sort_keys=True)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
