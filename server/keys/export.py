"""All keys as one JSON document, for a copy of them or to take them to another broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from redis import Redis

from server.errors import CommandError
from server.keys.audit import Transaction, transaction
from server.keys.record import Change, Key, KeyFormError, Moment
from server.keys.store import KeyStore, Secret, all_keys, revoke

MOST_SECRETS = 2


class ImportRefusedError(CommandError):
    """What is to be imported is here already. Nothing was changed."""


class Imported(NamedTuple):
    """What an import has done.

    Attributes:
        keys: those of the document, as they are now.
        ousted: those revoked, as one of these has their name.
        still_revoked: of `keys`, those that the document has in use and that were revoked here.
    """

    keys: list[Key]
    ousted: list[Key]
    still_revoked: list[Key]


class ExportedSecret(BaseModel):
    """What is kept of a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    ends_at: Moment | None = None


class ExportedKey(Key):
    """A key with what is kept of its secrets."""

    secrets: tuple[ExportedSecret, ...] = Field(max_length=MOST_SECRETS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(secret.ends_at is None for secret in self.secrets) > 1:
            raise ValueError("of its secrets, only one may be without an end")
        if (self.balance is None) != (self.granted is None):
            raise ValueError("a key has both `balance` and `granted`, or neither")
        if self.balance is not None:
            total = self.balance + self.reserved + self.charged
            if total != self.granted:
                raise ValueError(f"`balance`, `reserved` and `charged` make {total}, not `granted`")
        return self

    def key(self, present: Key | None) -> Key:
        """The key that it becomes, where `present` is.

        Its live requests do not come along, so what is reserved for them may be spent again; what
        `present` has reserved for its own stays so. Nor does a key come back that was revoked.
        """
        fields = {name: value for name, value in self if name != "secrets"}
        key = Key.of(**fields).replace(reserved=present.reserved if present else 0)
        if present is not None and present.revoked_at is not None:
            key = key.replace(revoked_at=present.revoked_at)
        return key.granted_in_all(self.granted)


class Export(BaseModel):
    """The document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[ExportedKey, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        live = [key for key in self.keys if key.revoked_at is None]
        for what, values in (
            ("id", [key.key_id for key in self.keys]),
            ("name", [key.name for key in live]),
            ("secret's hash", [secret.sha256 for key in self.keys for secret in key.secrets]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"two keys have the {what} {twice[0]!r}")
        return self


def export_keys(redis: Redis) -> str:
    """All keys, the revoked ones too, with the hashes of their secrets, as JSON.

    Raises:
        BrokerUnavailableError: nobody can tell.
    """
    exported = (
        ExportedKey(
            **dict(key),
            secrets=[
                ExportedSecret(sha256=secret.digest, ends_at=secret.ends_at) for secret in secrets
            ],
        )
        for key, secrets in all_keys(redis)
    )
    return Export(keys=exported).model_dump_json(indent=2, exclude_none=True)


def import_keys(
    redis: Redis, document: str | bytes, *, place: str, replace: bool = False, by: str = ""
) -> Imported:
    """Make the keys of a document. A key that was revoked here stays so.

    Args:
        redis: the broker.
        document: what `export_keys` gave.
        place: where it comes from, for errors.
        replace: whether to overwrite what is here.
        by: who does it, for the log; empty: the user of this process.

    Raises:
        KeyFormError: it is no such document; the text names the place.
        ImportRefusedError: without `replace`, something is here already.
        BrokerUnavailableError: it is not known whether it was done.
    """
    try:
        wanted = Export.model_validate_json(document).keys
    except ValidationError as error:
        raise KeyFormError.of(error, place) from None

    def decide(step: Transaction) -> Imported:
        book = KeyStore(step)
        present = {key.key_id: book.key(key.key_id) for key in wanted}
        made = [key.key(present[key.key_id]) for key in wanted]
        holders = _holders(book, made)
        known = _known(book, wanted)
        if not replace:
            _refuse(key for key in present.values() if key)
            _refuse(holders)
            _refuse(book.key(secret.key_id) for secret in known)
        for secret in known:
            book.drop_secret(secret)
        ousted = [revoke(book, key) for key in holders]
        for key, exported in zip(made, wanted, strict=True):
            _put(book, key, present[key.key_id], exported.secrets)
        was_live = {key.key_id for key in wanted if key.revoked_at is None}
        still_revoked = [key for key in made if key.revoked_at and key.key_id in was_live]
        return Imported(made, ousted, still_revoked)

    return transaction(redis, decide, by=by)


def _holders(book: KeyStore, made: list[Key]) -> list[Key]:
    """Keys that have a name that one of these is to have, and are not among them."""
    ids = {key.key_id for key in made}
    found = (book.holder(key.name) for key in made if key.revoked_at is None)
    return [key for key in found if key is not None and key.key_id not in ids]


def _known(book: KeyStore, wanted: Iterable[ExportedKey]) -> list[Secret]:
    """Secrets that are wanted, or belong to a key that is."""
    ids = {key.key_id for key in wanted}
    hashes = {secret.sha256 for key in wanted for secret in key.secrets}
    return [secret for secret in book.secrets() if secret.key_id in ids or secret.digest in hashes]


def _refuse(present: Iterable[Key | None]) -> None:
    names = sorted({f"`{key.name}` ({key.key_id})" for key in present if key is not None})
    if names:
        raise ImportRefusedError(
            f"Nothing was imported, as there is {', '.join(names)} already. With --replace, what "
            "is imported takes the place of what is here."
        )


def _put(book: KeyStore, key: Key, present: Key | None, secrets: Iterable[ExportedSecret]) -> None:
    book.put(key, present, "import", *([Change("secrets", "", "as imported")] if present else []))
    for secret in secrets:
        book.put_secret(Secret(secret.sha256, key.key_id, secret.ends_at))
