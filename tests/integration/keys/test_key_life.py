"""The life of an API key, by the commands of its administrator and as its clients meet it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from segmind.exceptions import SegmindError
from typer.testing import CliRunner

from server.cli import main as cli
from server.keys.lookup import Scope, digest, new_secret
from server.keys.record import Key
from server.keys.store import change_key, one_key, revoke_key, rotate_key
from server.keys.times import broker_time
from tests.support.stack import Stack, eventually
from tests.support.up import Up
from tests.support.wire import another_gateway, refusal
from worker.store import keyspace

CREDITS = "/v1/get-user-credits"
POND = {"prompt": "a pond", "frames": 1, "steps": 10}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker, two gateways and a slow worker."""
    folder = tmp_path_factory.mktemp("keys")
    with Stack(folder, engine="fake", fake_step_seconds="0.1") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="module")
def other(stack: Stack) -> str:
    """The URL of the second gateway."""
    return another_gateway(stack)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a key of this test."""
    return str(request.node.originalname)[:64]


def ask(stack: Stack, other: str, secret: str) -> list[int | str]:
    """200, or the text of the refusal, of both gateways."""
    answers = [
        httpx2.get(url + CREDITS, headers={"x-api-key": secret}) for url in (stack.url, other)
    ]
    assert all(secret not in answer.text for answer in answers)
    return [200 if answer.is_success else refusal(answer, 401) for answer in answers]


def command(stack: Stack, *arguments: str, given: str = "") -> str:
    """What a command prints that succeeds."""
    status, printed, told = run(stack, *arguments, given=given)
    assert status == 0, told
    return printed


def run(stack: Stack, *arguments: str, given: str = "") -> tuple[int, str, str]:
    """Exit status and both outputs of a command, which takes a second in a process of its own."""
    settings = {"MOCHI_REDIS_URL": stack.broker.url, "COLUMNS": "200", "NO_COLOR": "1"}
    done = CliRunner().invoke(cli.app, arguments, input=given, env=settings)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def typed(stack: Stack, *arguments: str) -> str:
    """What a command prints that a user types."""
    done = stack.run(*arguments, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


# At every gateway, from the next request on


def test_a_revoked_key_is_refused_at_every_gateway_at_once(
    stack: Stack, other: str, name: str
) -> None:
    secret = stack.key(name)
    for _ in range(3):
        assert ask(stack, other, secret) == [200, 200]
    revoke_key(stack.redis, name)
    assert (
        ask(stack, other, secret)
        == ["This API key was revoked; ask the operator of this server for another."] * 2
    )
    assert ask(stack, other, stack.key(name)) == [200, 200]  # the name is free


def test_a_rotated_key_has_two_good_secrets_and_then_one(
    stack: Stack, other: str, name: str
) -> None:
    first = stack.key(name)
    assert ask(stack, other, first) == [200, 200]
    second = rotate_key(stack.redis, name)
    assert ask(stack, other, first) == ask(stack, other, second) == [200, 200]
    third = rotate_key(stack.redis, name, grace=timedelta())
    assert "has expired" in str(ask(stack, other, second))
    assert "Invalid API key" in str(ask(stack, other, first))
    assert ask(stack, other, third) == [200, 200]


def test_requests_survive_a_rotation(stack: Stack, name: str) -> None:
    request_id = stack.http(stack.key(name)).post("/v2/mochi-1", json=POND).json()["request_id"]
    client = stack.http(rotate_key(stack.redis, name, grace=timedelta()))
    assert eventually(
        lambda: client.get(f"/v2/requests/{request_id}").json()["status"] == "COMPLETED"
    )


def test_an_expired_key_is_refused_until_it_is_given_more_time(
    stack: Stack, other: str, name: str
) -> None:
    secret = stack.key(name, expires_at=broker_time(stack.redis) + timedelta(hours=1))
    assert ask(stack, other, secret) == [200, 200]

    def ends_in(hours: int) -> None:
        end = broker_time(stack.redis) + timedelta(hours=hours)
        change_key(stack.redis, name, lambda key: key.replace(expires_at=end))

    ends_in(-1)
    assert (
        ask(stack, other, secret)
        == ["This API key has expired; ask the operator of this server for another."] * 2
    )
    ends_in(1)
    assert ask(stack, other, secret) == [200, 200]


def test_a_scope_that_is_taken_away_is_missed_at_once(stack: Stack, name: str) -> None:
    client = stack.http(stack.key(name))
    assert client.get(CREDITS).is_success
    change_key(stack.redis, name, lambda key: key.replace(scopes=(Scope.GENERATE,)))
    assert "lacks the scope `read`" in refusal(client.get(CREDITS), 403)


# What a key may do


def test_a_scope_that_a_key_lacks_is_403(stack: Stack) -> None:
    reader = stack.key(scopes=[Scope.READ])
    for path in ("/v1/mochi-1", "/v2/mochi-1"):
        answer = stack.http(reader).post(path, json=POND)
        assert "lacks the scope `generate`" in refusal(answer, 403)
    with pytest.raises(SegmindError) as error:
        stack.sdk(reader).submit_async("mochi-1", **POND)
    assert error.value.status == 403
    assert "lacks the scope `generate`" in str(error.value.detail)


def test_a_model_that_a_key_may_not_use_is_403_with_those_that_it_may(stack: Stack) -> None:
    secret = stack.key(models=["other-model", "another"])
    told = "may not use the model `mochi-1`; it may use `another`, `other-model`."
    for path in ("/v1/mochi-1", "/v2/mochi-1"):
        assert told in refusal(stack.http(secret).post(path, json=POND), 403)
    with pytest.raises(SegmindError) as error:
        stack.sdk(secret).run("mochi-1", **POND)
    assert error.value.status == 403
    assert told in str(error.value.detail)
    fine = stack.http(stack.key(models=["mochi-1"])).post("/v2/mochi-1", json=POND)
    assert fine.is_success


# What a revoked key leaves


@pytest.fixture
def busy(stack: Stack, name: str) -> tuple[Key, list[str]]:
    """A key with one request that runs and two that wait."""
    client = stack.http(stack.key(name))
    key, _ = one_key(stack.redis, name)
    ids = [
        str(client.post("/v2/mochi-1", json=POND | {"steps": 75}).json()["request_id"])
        for _ in range(3)
    ]
    eventually(lambda: stack.record(ids[0])["status"] == "PROCESSING")
    return key, ids


def test_revoking_cancels_what_waits_and_what_runs(
    stack: Stack, busy: tuple[Key, list[str]]
) -> None:
    key, ids = busy
    told = command(stack, "keys", "revoke", key.name)
    assert told == f"Revoked: {key.name} ({key.key_id}).\nCancelled: 3 of its requests.\n"
    for request_id in ids:
        record = eventually(lambda: _ended(stack, request_id))
        assert record["error_code"] == "cancelled"
    assert command(stack, "keys", "revoke", key.key_id).startswith("Revoked: ")


def test_revoking_may_leave_requests_alone(stack: Stack, busy: tuple[Key, list[str]]) -> None:
    key, ids = busy
    assert "Cancelled" not in command(stack, "keys", "revoke", key.name, "--keep-requests")
    assert all("cancelled" not in stack.record(request_id) for request_id in ids)
    assert command(stack, "keys", "revoke", key.key_id).endswith("Cancelled: 3 of its requests.\n")


def _ended(stack: Stack, request_id: str) -> dict[str, Any]:
    record = stack.record(request_id)
    return record if record["status"] in {"COMPLETED", "FAILED"} else {}


# The commands


def test_a_key_lives_by_commands(stack: Stack, other: str) -> None:
    first = typed(
        stack, "keys", "create", "alice", "--scope", "read", "--credits", "7.5", "--expires", "30d",
        "--jobs-at-once", "4",
    ).strip()  # fmt: skip
    assert ask(stack, other, first) == [200, 200]
    changed = typed(
        stack, "keys", "set", "alice", "--add-credits", "2.5", "--requests-per-minute", "60",
        "--jobs-at-once", "0", "--never-expires", "--priority", "3", "--model", "mochi-1",
    )  # fmt: skip
    for line in ("requests_per_minute: none → 60", "jobs_at_once: 4 → none", "priority: 1 → 3",
                 "balance: 7.5 → 10", "models: all → mochi-1"):  # fmt: skip
        assert line in changed.splitlines()
    assert "→ never" in changed
    second = typed(stack, "keys", "rotate", "alice", "--grace", "15m").strip()
    (row,) = [line for line in command(stack, "keys", "list").splitlines() if "alice" in line]
    assert row.split() == ["alice", "read", "mochi-1", "3", "60", "a", "minute", "10", "never"]
    shown = json.loads(command(stack, "keys", "show", "alice", "--json"))
    assert (shown["balance"], shown["granted"], shown["reserved"]) == ("10", "10", "0")
    assert sorted(secret["ends_at"] is None for secret in shown["secrets"]) == [False, True]
    everything = command(stack, "keys", "show", "alice") + command(stack, "audit")
    for secret in (first, second):
        assert ask(stack, other, secret) == [200, 200]
        assert secret not in everything
        assert digest(secret) not in everything
    command(stack, "keys", "set", "alice", "--unlimited", "--name", "zoe")
    gone = typed(stack, "keys", "revoke", "zoe")
    assert "zoe" not in command(stack, "keys", "list")
    assert shown["key_id"] in gone
    assert shown["key_id"] in command(stack, "keys", "list", "--all")
    log = json.loads(typed(stack, "audit", "--json", "--last", "5"))
    assert [entry["act"] for entry in log] == ["create", "set", "rotate", "set", "revoke"]
    assert {entry["key_id"] for entry in log} == {shown["key_id"]}


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("create", "a/b"), 1, "1 to 64 letters"),
        (("create", "new", "--model", "A b"), 1, "models.0: got 'A b'"),
        (("create", "new", "--credits", "1.1234567"), 2, "6 decimal places"),
        (("create", "new", "--credits", "-1"), 2, "--credits"),
        (("create", "new", "--expires", "soon"), 1, "--expires: 'soon' is neither"),
        (("create", "new", "--expires", "2020-01-01"), 1, "is in the past"),
        (("create", "new", "--priority", "0"), 2, "--priority"),
        (("rotate", "nobody"), 1, "There is no key `nobody`"),
        (("rotate", "nobody", "--grace", "soon"), 2, "not a duration"),
        (("revoke", "nobody"), 1, "There is no key `nobody`"),
        (("show", "nobody"), 1, "There is no key `nobody`"),
        (
            ("set", "nobody", "--model", "xyz"),
            1,
            "Warning: no model of this release is called `xyz`; it has `mochi-1`, `mochi-1-fast`.",
        ),
        (("set", "nobody", "--priority", "2"), 1, "There is no key `nobody`"),
        (("set", "free", "--add-credits", "2"), 1, "is unlimited"),
        (("set", "free", "--credits", "2", "--unlimited"), 2, "either --credits or --unlimited"),
        (("apply", "absent.toml"), 1, "absent.toml cannot be read: No such file"),
        (("hash",), 2, "no secret of"),
    ],
)
def test_what_cannot_be_done_is_told(
    stack: Stack, arguments: tuple[str, ...], status: int, told: str
) -> None:
    if "free" in arguments and not stack.redis.hexists(keyspace.KEY_NAMES, "free"):
        stack.key("free")
    ended, printed, error = run(stack, "keys", *arguments, given="weak")
    assert ended == status, error
    assert told in " ".join(error.replace("│", " ").split())
    assert not printed
    assert not stack.redis.hexists(keyspace.KEY_NAMES, "new")


def test_keys_go_to_another_broker_with_their_secrets(stack: Stack, tmp_path: Path) -> None:
    secret = stack.key("traveller", credits="12.25")
    path = tmp_path / "exported.toml"
    path.write_text(command(stack, "keys", "export"))
    apply = ("keys", "apply", str(path))
    with Stack(tmp_path, engine="fake") as there:
        assert "traveller: created; " in command(there, *apply)
        there.start_gateway()
        assert there.http(secret).get(CREDITS).is_success
        shown = json.loads(command(there, "keys", "show", "traveller", "--json"))
        assert shown["balance"] == "12.25"
        assert "traveller: unchanged\n" in command(there, *apply)
        command(there, "keys", "revoke", "traveller")
        assert "traveller: revoked on " in command(there, *apply)
        assert there.http(secret).get(CREDITS).status_code == 401


# A file of keys


def test_a_file_is_applied_by_command(stack: Stack, other: str, tmp_path: Path) -> None:
    secret = command(stack, "keys", "secret").strip()
    sha256 = command(stack, "keys", "hash", given=secret).strip()
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.filed]\nsecret_sha256 = "{sha256}"\npriority = 2\n')
    apply = ("keys", "apply", str(path))
    created = "filed: created; priority: 2; source: file\n"
    assert command(stack, *apply, "--dry-run") == created
    assert "Invalid" in str(ask(stack, other, secret))
    assert command(stack, *apply) == created
    assert ask(stack, other, secret) == [200, 200]
    assert command(stack, *apply) == "filed: unchanged\n"
    assert "comes from a file" in run(stack, "keys", "set", "filed", "--priority", "3")[2]
    assert command(stack, *apply) == "filed: priority: 3 → 2\n"
    path.write_text("")
    assert command(stack, *apply) == "No key in the file.\n"
    assert "filed: revoked" in command(stack, *apply, "--prune")
    assert "was revoked" in str(ask(stack, other, secret))


def test_a_gateway_puts_a_file_in_force_before_it_listens(stack: Stack, tmp_path: Path) -> None:
    secret = new_secret()
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.started]\nsecret_sha256 = "{digest(secret)}"\n')
    for outcome in ("created; source: file", "unchanged"):
        url = another_gateway(stack, keys_file=str(path))
        assert httpx2.get(url + CREDITS, headers={"x-api-key": secret}).is_success
        assert f"started: {outcome}" in stack.log_of(stack.processes[-1])
    log = json.loads(command(stack, "audit", "--json", "--last", "1"))
    assert log[0]["by"].startswith("MOCHI_KEYS_FILE at ")


def test_a_bad_file_stops_the_start_of_a_gateway(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[keys.x]\npriority = 1\n")
    process = stack.start("server", environ={"MOCHI_PORT": "0", "MOCHI_KEYS_FILE": str(path)})
    assert process.wait(60) == os.EX_CONFIG
    assert stack.log_of(process) == f"{path}: [keys.x]: secret_sha256: Field required.\n"


def test_a_gateway_with_a_file_waits_for_its_broker(tmp_path: Path) -> None:
    secret = new_secret()
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.late]\nsecret_sha256 = "{digest(secret)}"\n')
    stack = Stack(tmp_path, engine="fake", port="0", keys_file=str(path))
    process = stack.start("server")
    try:
        eventually(lambda: "keys_file.waits" in stack.log_of(process))
        with stack:
            eventually(lambda: "gateway.listening" in stack.log_of(process))
            assert "late: created" in stack.log_of(process)
    finally:
        process.kill()
        process.wait()


def test_up_puts_a_file_in_force_and_makes_no_key_of_its_own(tmp_path: Path) -> None:
    secret = new_secret()
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.ours]\nsecret_sha256 = "{digest(secret)}"\n')
    with Up(tmp_path / "data", "--keys-file", str(path)) as up:
        assert httpx2.get(up.url + CREDITS, headers={"x-api-key": secret}).is_success
        assert "Key ours: created; source: file\n" in up.log.read_text()
        assert not (up.folder / "key").exists()


def test_up_with_a_bad_file_ends_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[keys.ours]\n")
    up = Up(tmp_path / "data", "--keys-file", str(path))
    assert up.process.wait(60) == os.EX_CONFIG
    assert f"{path}: [keys.ours]: secret_sha256: Field required.\n" in up.log.read_text()
