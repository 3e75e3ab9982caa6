"""Backups: keys with their accounts, webhooks, usage and history, as lines of JSON.

Requests that wait or run, and videos, are not in them: they live in the broker for an hour. Each
line is one of the classes below, so a file is read and restored line by line. Credits that are
reserved for requests count as unspent.

Every function that takes `redis` raises BrokerUnavailableError when the broker does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from redis import Redis

from models.version import this_build
from server.errors import CommandError, visible
from server.keys.record import KEY_ID
from server.keys.times import broker_time
from worker.broker.connection import broker_errors
from worker.broker.schema import READS, SCHEMA, SCHEMA_KEY, refusal
from worker.store import keyspace

FORMAT = 1
"""Of the file; raise it when a line changes."""
AT_ONCE = 500
"""Sums or ended requests of one line, and of one call to the broker."""


class BackupFileError(CommandError):
    """The file cannot be read, is no whole backup, or is one of another release."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(_Line):
    """The first line. `schema_number` is that of the data; `backup_id` is drawn for each backup."""

    kind: Literal["backup"] = "backup"
    format: int = FORMAT
    schema_number: int
    backup_id: str
    made_at: datetime
    release: str


class UsageLine(_Line):
    """Sums of one day: by `OWNER METRIC`, as in the broker. `day` counts from 1970."""

    kind: Literal["usage"] = "usage"
    day: int
    expires_at: int
    sums: dict[str, int]


class HistoryLine(_Line):
    """Ended requests of one owner, the oldest first: each with its id in the stream, and fields."""

    kind: Literal["history"] = "history"
    owner: str = Field(pattern=KEY_ID)
    expires_at: int
    ended: list[tuple[str, dict[str, str]]]


class KeyLine(_Line):
    """A key, its secrets' SHA-256 with what `Secret` reads, and what belongs to its webhooks.

    Attributes:
        record: the key's hash, without reserved credits.
        signing_secrets: the current one, and the one before the last rotation; as far as there.
        old_signing_secret_ends_at: ms since 1970.
        webhooks: standing webhooks as JSON, by id.
    """

    kind: Literal["key"] = "key"
    key_id: str = Field(pattern=KEY_ID)
    record: dict[str, str]
    secrets: dict[str, str]
    signing_secrets: list[str] = []
    old_signing_secret_ends_at: int = 0
    webhooks: dict[str, str] = {}


class End(_Line):
    """The last line: without it the file is only a part. `lines` before this one."""

    kind: Literal["end"] = "end"
    lines: int


Line: TypeAlias = Header | UsageLine | HistoryLine | KeyLine | End
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def lines_of_backup(redis: Redis) -> Iterator[Line]:
    """Everything that a backup holds; keys come last, so that a restored key has its past.

    The server may run meanwhile. Each key is read at one moment, all together are not.
    """
    count = 0
    for line in _lines(redis):
        yield line
        count += 1
    yield End(lines=count)


def read_backup(path: Path) -> Iterator[Line]:
    """The lines of a file, the last one included.

    Raises:
        BackupFileError: the file cannot be read, or is not a whole backup that this release reads.
    """
    count, last = 0, None
    try:
        with path.open("rb") as file:
            for count, text in enumerate(file):
                last = _parse(path, count, text)
                yield last
    except OSError as error:
        raise BackupFileError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(last, End) or last.lines != count:
        raise BackupFileError(
            f"{path} is not a whole backup: its last line is missing. Restore one "
            "that `mochi-server backup` has finished."
        )


def _parse(path: Path, number: int, text: bytes) -> Line:
    try:
        line = _LINE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(visible(str(part)) for part in first["loc"])
        raise BackupFileError(
            f"{path}, line {number + 1}: {f'{where}: ' if where else ''}{first['msg']}."
        ) from None
    if isinstance(line, Header) != (number == 0):
        raise BackupFileError(
            f"{path} is no backup: its first line alone must have the kind `backup`."
        )
    if isinstance(line, Header):
        _check(path, line)
    return line


def _check(path: Path, header: Header) -> None:
    if header.format != FORMAT:
        raise BackupFileError(
            f"{path} has format {header.format}, and this release reads format {FORMAT}. Restore "
            f"it with the release that wrote it, mochi-server {visible(header.release)}."
        )
    if header.schema_number not in READS:
        raise BackupFileError(refusal(str(header.schema_number), f"The data in {path}"))


def _lines(redis: Redis) -> Iterator[Line]:
    with broker_errors():
        schema: Any = redis.get(SCHEMA_KEY)
        yield Header(
            schema_number=int(schema or SCHEMA),
            backup_id=uuid4().hex,
            made_at=broker_time(redis),
            release=this_build().version,
        )
        for name in _names(redis, keyspace.USAGE):
            yield from _usage(redis, name)
        for name in _names(redis, keyspace.API_KEY):
            yield from _history(redis, name.removeprefix(keyspace.API_KEY))
        secrets = _secrets_by_key(redis)
        for name in _names(redis, keyspace.API_KEY):
            key_id = name.removeprefix(keyspace.API_KEY)
            yield from _key(redis, key_id, secrets.get(key_id, {}))


def _names(redis: Redis, prefix: str) -> list[str]:
    return sorted(map(str, redis.scan_iter(f"{prefix}*", 1000)))


def _usage(redis: Redis, name: str) -> Iterator[UsageLine]:
    pipeline = redis.pipeline()  # a transaction: it may expire, or begin
    pipeline.hgetall(name)
    pipeline.pexpiretime(name)
    sums, expires_at = pipeline.execute()
    each = iter(sorted(sums.items()))
    while some := dict(islice(each, AT_ONCE)):
        day = int(name.removeprefix(keyspace.USAGE))
        yield UsageLine(day=day, expires_at=expires_at, sums=some)


def _history(redis: Redis, owner: str) -> Iterator[HistoryLine]:
    past, since = keyspace.PAST + owner, "-"
    while True:
        pipeline = redis.pipeline()  # a transaction, as for usage
        pipeline.xrange(past, min=since, count=AT_ONCE)
        pipeline.pexpiretime(past)
        rows, expires_at = pipeline.execute()
        if not rows:
            return
        yield HistoryLine(owner=owner, expires_at=expires_at, ended=rows)
        since = f"({rows[-1][0]}"


def _secrets_by_key(redis: Redis) -> dict[str, dict[str, str]]:
    stored: Any = redis.hgetall(keyspace.SECRETS)
    grouped: dict[str, dict[str, str]] = {}
    for sha256, text in stored.items():
        grouped.setdefault(text.split()[0], {})[sha256] = text
    return grouped


def _key(redis: Redis, key_id: str, secrets: dict[str, str]) -> Iterator[KeyLine]:
    old = keyspace.old_webhook_secret(key_id)
    pipeline = redis.pipeline()  # a transaction: the account and its webhooks at one moment
    pipeline.hgetall(keyspace.API_KEY + key_id)
    pipeline.mget(keyspace.webhook_secret(key_id), old)
    pipeline.pexpiretime(old)
    pipeline.hgetall(keyspace.STANDING + key_id)
    record, signing, old_ends_at, webhooks = pipeline.execute()
    if record:
        yield KeyLine(
            key_id=key_id,
            record=_without_reserved(record),
            secrets=secrets,
            signing_secrets=[secret for secret in signing if secret],
            old_signing_secret_ends_at=max(0, old_ends_at),
            webhooks=webhooks,
        )


def _without_reserved(record: dict[str, str]) -> dict[str, str]:
    reserved = int(record.pop("reserved", 0))
    if "balance" in record:
        record["balance"] = str(int(record["balance"]) + reserved)
    return record
