"""One idempotency key of one client: the same key with the same parameters makes one request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from models.params import GenerateParams
from worker import keyspace


@dataclass(frozen=True)
class Idempotency:
    """What the broker is asked to compare.

    Attributes:
        key: of the broker.
        fingerprint: of the parameters, as they were asked for.
    """

    key: str
    fingerprint: str

    @classmethod
    def of(cls, owner: str, key: str, params: GenerateParams) -> Idempotency:
        """The key that `owner` has given for `params`, whose seed is not drawn yet.

        Hashed, as a client may put anything into it; each owner has keys of its own.
        """
        digest = _digest(f"{owner} {key}")
        return cls(keyspace.idempotency_key(digest), _digest(params.model_dump_json()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
