"""The record of an API key: permissions, limits and balance. Never its secret."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from server.errors import CommandError, visible
from server.keys.lookup import PREFIX, Scope
from server.keys.times import from_ms, in_utc, to_ms, written
from worker.billing import DECIMALS, from_millionths, to_millionths

KEY_ID = r"^[0-9a-f]{32}$"
MOST_PRIORITY = 100
MOST_REQUESTS = 10_000
MOST_CREDITS = 10**9
MOST_EVER = 9 * 10**9
"""Credits that a key can be granted in total: Lua counts their millionths exactly."""

MOST_ECHOED = 100
"""Characters of a rejected value that a message may repeat."""

FORMS: dict[Any, str] = {
    "name": "A name has 1 to 64 letters, digits, spaces or `.@_-`, a letter or digit first",
    "models": "A model's name has 1 to 64 small letters, digits or `._-`",
    "key_id": "An id has 32 hex digits",
    "secret_sha256": "A hash has 64 hex digits; `mochi-server keys hash` prints one",
}
"""Rules in words, for fields whose rule is a regular expression."""


class KeyFormError(CommandError):
    """A field of a key is invalid; the message names it."""

    @classmethod
    def of(cls, error: ValidationError, place: str = "") -> Self:
        """A message for users about the first invalid field; `place` says where it stands."""
        first = error.errors(include_url=False)[0]
        where = ".".join(visible(str(part)) for part in first["loc"])
        rule = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "string_pattern_mismatch":
            rule = next((FORMS[part] for part in first["loc"] if part in FORMS), rule)
        value = first["input"]
        came = f"{value:f}" if isinstance(value, Decimal) else repr(value)
        # The value may be a secret that was typed in place of its hash.
        is_told = len(came) < MOST_ECHOED and "secret" not in where and PREFIX not in came
        parts = [place, where, f"got {came}. {rule}." if is_told else f"{rule}."]
        return cls(": ".join(filter(None, parts)))


def _in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


def _no_id(name: str) -> str:
    if re.fullmatch(KEY_ID, name):
        raise ValueError("A name is not of 32 hex digits: it would be taken for an id")
    return name


Name = Annotated[
    str,
    # \p{DI}: characters that are invisible although Unicode counts them as letters.
    StringConstraints(pattern=r"^[\p{L}\p{N}--\p{DI}][[\p{L}\p{M}\p{N}_ .@-]--\p{DI}]{0,63}$"),
    AfterValidator(_no_id),
]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_in_order)]
Models = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], ...],
    AfterValidator(_in_order),
]
Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]
Limit = Annotated[int, Field(ge=1, le=MOST_REQUESTS)]
Credits = Annotated[Decimal, Field(ge=0, le=MOST_CREDITS, decimal_places=DECIMALS)]
Cap = Annotated[Decimal, Field(gt=0, le=MOST_CREDITS, decimal_places=DECIMALS)]
Granted = Annotated[Decimal, Field(ge=0, le=MOST_EVER, decimal_places=DECIMALS)]
Balance = Annotated[Decimal, Field(ge=-MOST_EVER, le=MOST_EVER, decimal_places=DECIMALS)]


class Terms(BaseModel):
    """The fields of a key that an administrator sets.

    Attributes:
        name: unique among live keys.
        scopes: permissions.
        models: models that the key may use; empty: all.
        priority: turns in the queue per turn of a key whose priority is 1.
        requests_per_minute: None: no limit.
        jobs_at_once: requests that may wait or run; None: no limit.
        monthly_cap: credits charged at most in a calendar month, in UTC; None: no limit.
        expires_at: None: never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name
    scopes: Scopes = (Scope.GENERATE, Scope.READ)
    models: Models = ()
    priority: int = Field(default=1, ge=1, le=MOST_PRIORITY)
    requests_per_minute: Limit | None = None
    jobs_at_once: Limit | None = None
    monthly_cap: Cap | None = None
    expires_at: Moment | None = None

    @classmethod
    def of(cls, place: str = "", /, **fields: object) -> Self:
        """Validate `fields`.

        Raises:
            KeyFormError: a message for users in place of pydantic's error.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise KeyFormError.of(error, place) from None


class NewKey(Terms):
    """A key to be created. `credits`: its first balance; None: it is not metered."""

    credits: Credits | None = None


class Change(NamedTuple):
    """A changed field, as text for the audit log."""

    field: str
    old: str
    new: str

    def __str__(self) -> str:
        old = f"{self.old} → " if self.old else ""
        return visible(f"{self.field}: {old}{self.new}")


class Key(Terms):
    """A key as stored in the broker, in a hash with the same fields as text.

    For a metered key, granted = balance + reserved + charged.

    Attributes:
        key_id: owner of its requests.
        created_at: by the broker's clock.
        revoked_at: None: the key is live.
        source: what created it; a key from a file is revoked when it leaves the file.
        balance: credits left; None: not metered.
        granted: credits granted in total; None: not metered.
        reserved: credits held for requests that wait or run.
        charged: credits charged for completed requests.
    """

    key_id: str = Field(pattern=KEY_ID)
    created_at: Moment
    revoked_at: Moment | None = None
    source: Literal["command", "file"] = "command"
    balance: Balance | None = None
    granted: Granted | None = None
    reserved: Granted = Decimal(0)
    charged: Granted = Decimal(0)

    @staticmethod
    def read(key_id: str, record: dict[str, str]) -> Key:
        """Parse a record of the broker, without validation."""
        known: Any = {
            name: _from_text(name, record[name]) for name in record.keys() & Key.model_fields
        }
        return Key.model_construct(None, key_id=key_id, **known)

    def record(self) -> dict[str, str]:
        return {
            name: _to_text(value) for name, value in self if name != "key_id" and value is not None
        }

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed.

        Raises:
            KeyFormError: naming the field.
        """
        return self.of(**(dict(self) | changes))

    def granted_in_all(self, granted: Decimal | None) -> Self:
        """A copy with `granted` as its total grant; None makes it unmetered."""
        if granted is None:
            return self.replace(balance=None, granted=None)
        return self.replace(granted=granted, balance=granted - self.reserved - self.charged)

    def with_balance(self, balance: Decimal) -> Self:
        """A copy with `balance` left to spend.

        Credits reserved while the key was unmetered were never paid; without counting them here,
        the end of those requests would add them to the balance.
        """
        unpaid = Decimal(0) if self.granted is None else self.reserved
        return self.granted_in_all(balance + unpaid + self.charged)

    def changes_since(self, old: Key | None) -> list[Change]:
        """The differences from `old`, or from the defaults for a new key."""
        defaults = {name: field.default for name, field in Key.model_fields.items()}
        unnoted = {name: getattr(self, name) for name in ("name", "key_id", "created_at")}
        before = dict(old) if old else defaults | unnoted
        return [
            Change(name, in_words(name, before[name]) if old else "", in_words(name, value))
            for name, value in self
            if value != before[name]
        ]


AMOUNTS = frozenset({"balance", "granted", "reserved", "charged"})
"""Fields that requests change, too."""
_CREDITS = AMOUNTS | {"monthly_cap"}
_TIMES = {"created_at", "expires_at", "revoked_at"}
_SCOPES = {scope.value: scope for scope in Scope}
"""Unknown scopes, of a newer version, are kept as text."""
_NUMBERS = {"priority", "requests_per_minute", "jobs_at_once"}
_NOTHING = {"balance": "unlimited", "granted": "unlimited", "expires_at": "never"}


def _from_text(name: str, text: str) -> object:
    if name in _TIMES:
        return from_ms(int(text))
    if name in _CREDITS:
        return from_millionths(int(text))
    if name in _NUMBERS:
        return int(text)
    if name == "scopes":
        return tuple(_SCOPES.get(word, word) for word in text.split())
    return tuple(text.split()) if name == "models" else text


def _to_text(value: object) -> str:
    if isinstance(value, datetime):
        return str(to_ms(value))
    if isinstance(value, Decimal):
        return str(to_millionths(value))
    return " ".join(value) if isinstance(value, tuple) else str(value)


def in_words(name: str, value: object) -> str:
    if value is None:
        return _NOTHING.get(name, "none")
    if isinstance(value, datetime):
        return written(value)
    if isinstance(value, Decimal):
        return f"{from_millionths(to_millionths(value)):f}"
    return (", ".join(value) or "all") if isinstance(value, tuple) else str(value)
