"""Keys as a file says them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from redis import Redis

from server.keys.audit import entries
from server.keys.file import KeyFileError, apply_key_file, export_key_file, read_key_file
from server.keys.lookup import PREFIX, digest, new_secret
from server.keys.record import KeyFormError, NewKey
from server.keys.store import (
    KeyStateError,
    all_keys,
    change_key,
    create_key,
    is_registered,
    one_key,
    revoke_key,
    rotate_key,
)
from server.keys.times import written
from worker.billing import MILLION
from worker.store import keyspace

ANN, BOB = new_secret(), new_secret()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return path


def table(name: str, secret: str, *lines: str) -> str:
    return "\n".join([f"[keys.{name}]", f'secret_sha256 = "{digest(secret)}"', *lines, ""])


def applied(redis: Redis, path: Path, *, prune: bool = False, dry_run: bool = False) -> list[str]:
    lines, _ = apply_key_file(redis, path, prune=prune, dry_run=dry_run)
    return lines


def everything(redis: Redis) -> dict[str, object]:
    """All that the broker holds but the log."""
    return {name: redis.hgetall(name) for name in redis.scan_iter("mochi:*", _type="hash")}


def test_a_key_is_made_as_the_file_says_and_once(redis: Redis, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        table(
            "ann", ANN, 'scopes = ["read", "admin"]', 'models = ["mochi-1"]',
            "expires = 2027-01-31", "credits_granted = 7.5", "requests_per_minute = 60",
            "jobs_at_once = 4", "priority = 2",
        )
        + table("'bob @home'", BOB),
    )  # fmt: skip
    ann, bob = applied(redis, path)
    assert ann.startswith("ann: created; scopes: admin, read; models: mochi-1; priority: 2;")
    assert bob == "bob @home: created; source: file"
    key, secrets = one_key(redis, "ann")
    assert key.scopes == ("admin", "read")
    assert (key.balance, key.granted) == (Decimal("7.5"), Decimal("7.5"))
    assert key.expires_at
    assert written(key.expires_at) == "2027-01-31T00:00:00Z"
    assert [secret.digest for secret in secrets] == [digest(ANN)]
    assert one_key(redis, "bob @home")[0].balance is None

    before = everything(redis)
    assert applied(redis, path) == ["ann: unchanged", "bob @home: unchanged"]
    assert everything(redis) == before
    assert len(entries(redis, 10)) == 2


def test_what_was_changed_in_the_file_is_changed_and_told(redis: Redis, tmp_path: Path) -> None:
    applied(redis, write(tmp_path, table("ann", ANN, "credits_granted = 10", "priority = 2")))
    key_id = one_key(redis, "ann")[0].key_id
    for field, amount in {"balance": -4, "reserved": 1, "charged": 3}.items():
        redis.hincrby(keyspace.API_KEY + key_id, field, amount * MILLION)
    path = write(tmp_path, table("ann", ANN, "credits_granted = 15.5", "jobs_at_once = 3"))
    (dry,) = applied(redis, path, dry_run=True)
    assert one_key(redis, "ann")[0].granted == 10
    assert applied(redis, path) == [dry]
    assert dry == (
        "ann: priority: 2 → 1; jobs_at_once: none → 3; balance: 6 → 11.5; granted: 10 → 15.5"
    )
    assert applied(redis, write(tmp_path, table("ann", ANN, "credits_granted = 2"))) == [
        "ann: jobs_at_once: 3 → none; balance: 11.5 → -2; granted: 15.5 → 2"
    ]
    assert applied(redis, write(tmp_path, table("ann", ANN))) == [
        "ann: balance: -2 → unlimited; granted: 2 → unlimited"
    ]


def test_another_hash_is_a_rotation_with_its_grace(redis: Redis, tmp_path: Path) -> None:
    applied(redis, write(tmp_path, table("ann", ANN)))
    path = write(tmp_path, table("ann", BOB, 'grace = "2h"'))
    (line,) = applied(redis, path)
    assert line.startswith("ann: secret: another; the one before ends at ")
    secrets = {secret.digest: secret.ends_at for secret in one_key(redis, "ann")[1]}
    assert secrets[digest(BOB)] is None
    assert secrets[digest(ANN)] is not None
    assert applied(redis, path) == ["ann: unchanged"]


def test_the_file_has_the_last_word_on_what_was_changed_by_hand(
    redis: Redis, tmp_path: Path
) -> None:
    path = write(tmp_path, table("ann", ANN))
    applied(redis, path)
    change_key(redis, "ann", lambda old: old.replace(priority=9))
    rotated = rotate_key(redis, "ann")
    (line,) = applied(redis, path)
    assert line.startswith("ann: priority: 9 → 1; secret: another")
    secrets = {secret.digest: secret.ends_at for secret in one_key(redis, "ann")[1]}
    assert secrets[digest(ANN)] is None
    assert secrets[digest(rotated)] is not None
    assert applied(redis, path) == ["ann: unchanged"]


def test_a_key_that_was_made_by_hand_becomes_the_files(redis: Redis, tmp_path: Path) -> None:
    secret = create_key(redis, NewKey(name="ann", priority=2))
    assert applied(redis, write(tmp_path, table("ann", secret))) == [
        "ann: priority: 2 → 1; source: command → file"
    ]


def test_a_revoked_key_stays_so_whatever_the_file_says(redis: Redis, tmp_path: Path) -> None:
    path = write(tmp_path, table("ann", ANN))
    applied(redis, path)
    revoked = revoke_key(redis, "ann")
    before = everything(redis)
    (line,) = applied(redis, path)
    assert "revoked on" in line
    assert "stays so" in line
    assert everything(redis) == before
    (line,) = applied(redis, write(tmp_path, table("ann", BOB)))
    assert line == "ann: created; source: file"
    assert one_key(redis, "ann")[0].key_id != revoked.key_id


def test_pruning_revokes_what_came_from_a_file_and_nothing_else(
    redis: Redis, tmp_path: Path
) -> None:
    create_key(redis, NewKey(name="by hand"))
    applied(redis, write(tmp_path, table("ann", ANN) + table("bob", BOB)))
    path = write(tmp_path, table("ann", ANN))
    assert applied(redis, path) == ["ann: unchanged"]
    pruned = ["ann: unchanged", "bob: revoked, as it is not in the file any more"]
    assert applied(redis, path, prune=True, dry_run=True) == pruned
    bob = one_key(redis, "bob")[0]
    assert bob.revoked_at is None
    _, revoked = apply_key_file(redis, path, prune=True)
    assert [key.key_id for key in revoked] == [bob.key_id]
    assert [entry.act for entry in entries(redis, 1)] == ["revoke"]
    assert one_key(redis, "by hand")[0].revoked_at is None
    assert applied(redis, path, prune=True) == ["ann: unchanged"]


def test_the_secret_of_another_key_is_refused_and_nothing_is_changed(
    redis: Redis, tmp_path: Path
) -> None:
    secret = create_key(redis, NewKey(name="ann"))
    before = everything(redis)
    path = write(tmp_path, table("bob", BOB) + table("eve", secret))
    with pytest.raises(KeyStateError, match=r"\[keys.eve\]: secret_sha256: .* the key `ann`"):
        applied(redis, path)
    assert everything(redis) == before


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ('colour = "red"', r"\[keys.ann\]: colour: got 'red'"),
        ("priority = 0", r"\[keys.ann\]: priority: got 0. .* greater than or equal to 1"),
        ('scopes = ["write"]', r"\[keys.ann\]: scopes.0: got 'write'"),
        ("scopes = []", r"\[keys.ann\]: scopes: "),
        ('models = ["A b"]', r"\[keys.ann\]: models.0: got 'A b'. A model's name"),
        ('expires = "30d"', r"\[keys.ann\]: expires: got '30d'. .* write 2027-01-31"),
        ("expires = 9999-12-31T23:59:59-10:00", r"expires: .*from 1970 to 8999"),
        ("expires = 1969-12-31", r"expires: .*from 1970 to 8999"),
        ("expires = 30", r"\[keys.ann\]: expires: "),
        ("expires_at = 2027-01-31", r"\[keys.ann\]: expires_at: "),
        ("credits_granted = -1", r"\[keys.ann\]: credits_granted: .*-1"),
        ("credits_granted = 0.0000001", r"\[keys.ann\]: credits_granted: .* 6 decimal"),
        ("credits_granted = nan", r"\[keys.ann\]: credits_granted: "),
        ('grace = "soon"', r"\[keys.ann\]: grace: got 'soon'"),
        ('name = "eve"', r"\[keys.ann\]: name: "),
        ("[other]", r"keys.toml: other: unknown; keys are `\[keys.NAME\]`"),
        ("[keys.'a/b']", r"\[keys.a/b\]: "),
        (r'"\u001b]0;x" = 1', r"\[keys.ann\]: \\x1b\]0;x: "),
        (r'[keys."\u001b]0;x"]', r"\[keys.\\x1b\]0;x\]: "),
        (r'["\u001b]0;x"]', r"keys.toml: \\x1b\]0;x: unknown"),
        ("grace = -5", r"\[keys.ann\]: grace: got -5"),
        ("[keys]\neve = 1", r"\[keys.eve\]: must be a table"),
        ("= 1", r"keys.toml is not TOML: .*line 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, lines: str, named: str) -> None:
    with pytest.raises((KeyFormError, KeyFileError), match=named):
        read_key_file(write(tmp_path, table("ann", ANN) + lines))


def test_a_table_without_a_hash_or_no_table_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFormError, match=r"\[keys.ann\]: secret_sha256: Field required"):
        read_key_file(write(tmp_path, "[keys.ann]"))
    for text in ("keys = 1", "[keys]\nann = 1"):
        with pytest.raises(KeyFormError, match="must be"):
            read_key_file(write(tmp_path, text))
    with pytest.raises(KeyFileError, match="cannot be read: Is a directory"):
        read_key_file(tmp_path)
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        read_key_file(tmp_path / "absent")


def test_two_keys_with_one_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFormError, match=r"\[keys.bob\]: .* that of \[keys.ann\] as well"):
        read_key_file(write(tmp_path, table("ann", ANN) + table("bob", ANN)))


@pytest.mark.parametrize("field", ["secret_sha256", "secret", "scopes", "grace"])
def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, f'[keys.ann]\n{field} = "{ANN}"\n')
    with pytest.raises(KeyFormError) as error:
        read_key_file(path)
    assert PREFIX not in str(error.value)


# An export is such a file

FULL = NewKey(
    name="ann smith", scopes=("read",), models=("mochi-1",), priority=3, requests_per_minute=60,
    jobs_at_once=2, monthly_cap=Decimal("7.25"), credits=Decimal("10.5"),
    expires_at=datetime(2027, 1, 31, 18, tzinfo=UTC),
)  # fmt: skip
PER_BROKER = {"key_id", "created_at", "source"}


def test_keys_are_the_same_on_another_broker(redis: Redis, tmp_path: Path) -> None:
    secrets = [create_key(redis, new) for new in (FULL, NewKey(name="bob"))]
    before = [dict(key) for key, _ in all_keys(redis)]
    path = write(tmp_path, export_key_file(redis))
    redis.flushall()
    assert all(": created; " in line for line in applied(redis, path))
    after = [dict(key) for key, _ in all_keys(redis)]
    for old, new in zip(before, after, strict=True):
        assert {name for name in old if old[name] != new[name]} <= PER_BROKER
    assert all(is_registered(redis, secret) for secret in secrets)
    assert export_key_file(redis) == path.read_text()


def test_no_secret_is_in_an_export(redis: Redis) -> None:
    secret = create_key(redis, FULL)
    exported = export_key_file(redis)
    assert secret not in exported
    assert digest(secret) in exported


def test_what_was_reserved_may_be_spent_again(redis: Redis, tmp_path: Path) -> None:
    create_key(redis, FULL)
    name = keyspace.API_KEY + one_key(redis, "ann smith")[0].key_id
    for field, amount in {"balance": -6, "reserved": 3, "charged": 3}.items():
        redis.hincrby(name, field, amount * MILLION)
    path = write(tmp_path, export_key_file(redis))
    applied(redis, path)  # where the key is, its account stays as it is
    key, _ = one_key(redis, "ann smith")
    assert [key.balance, key.reserved, key.charged] == [Decimal("4.5"), 3, 3]
    redis.flushall()
    applied(redis, path)
    key, _ = one_key(redis, "ann smith")
    assert [key.balance, key.reserved, key.charged] == [Decimal("7.5"), 0, 3]


def test_revoked_keys_and_replaced_secrets_are_not_exported(redis: Redis, tmp_path: Path) -> None:
    old = create_key(redis, NewKey(name="ann"))
    new = rotate_key(redis, "ann", grace=timedelta(hours=1))
    create_key(redis, NewKey(name="gone"))
    revoke_key(redis, "gone")
    path = write(tmp_path, export_key_file(redis))
    redis.flushall()
    assert [line.partition(":")[0] for line in applied(redis, path)] == ["ann"]
    assert [is_registered(redis, secret) for secret in (old, new)] == [False, True]


def test_a_key_that_was_revoked_since_the_export_does_not_come_back(
    redis: Redis, tmp_path: Path
) -> None:
    secret = create_key(redis, FULL)
    path = write(tmp_path, export_key_file(redis))
    revoke_key(redis, "ann smith")
    (line,) = applied(redis, path)
    assert line.startswith("ann smith: revoked on ")
    assert not is_registered(redis, secret)
