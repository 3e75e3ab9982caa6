"""Backup and restore as an operator types them, while the servers run."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from server.keys.audit import entries
from server.keys.backup import lines_of_backup
from server.keys.record import NewKey
from server.keys.store import create_key
from tests.support.stack import COMMAND, Stack, eventually, start_command
from worker.store import keyspace

SETTINGS = {"engine": "fake", "fake_step_seconds": "0.01", "price_base": "2"}
POND = {"prompt": "a pond", "frames": 1, "steps": 10}


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[tuple[Stack, Stack]]:
    """A server to be backed up, and one that takes its place."""
    folders = tmp_path / "old", tmp_path / "new"
    for folder in folders:
        folder.mkdir()
    with Stack(folders[0], **SETTINGS) as old, Stack(folders[1], **SETTINGS) as new:
        yield old, new


def test_a_customer_finds_everything_at_the_server_that_takes_over(
    stacks: tuple[Stack, Stack], tmp_path: Path
) -> None:
    old, new = stacks
    old.start_gateway()
    old.start_worker()
    secret, file = old.key("ann", credits="10"), tmp_path / "backup.jsonl"
    made = old.sdk(secret).run("mochi-1", **POND)["request_id"]
    hook = "http://93.184.216.34/hook"
    webhook = {"webhook_url": hook, "event": {"types": ["PIXELFLOW"]}}
    assert old.http(secret).post("/webhook/add", json=webhook).is_success
    told = old.run("backup", str(file))
    assert told.returncode == 0, told.stderr
    assert "Wrote 1 key and 1 ended request of the history" in " ".join(told.stderr.split())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["backup.jsonl"]
    assert secret not in file.read_text()

    new.start_gateway()
    new.start_worker()
    client = new.http(secret)
    assert client.get("/v1/get-user-credits").status_code == 401
    restored = new.run("restore", str(file))
    assert restored.returncode == 0, restored.stderr
    assert "Restored 1 key and 1 ended request" in " ".join(restored.stderr.split())
    assert client.get("/v1/get-user-credits").json()["credits"] == 8
    assert client.get("/v1/usage").json() == old.http(secret).get("/v1/usage").json()
    webhooks = client.get("/webhook/get").json()
    assert webhooks == old.http(secret).get("/webhook/get").json()
    assert hook in str(webhooks)
    past: Any = new.redis.xrange(keyspace.PAST + new.owner(secret))
    assert [fields["id"] for _, fields in past] == [made]
    assert new.sdk(secret).run("mochi-1", **POND)["metrics"]["cost"] == 2
    assert client.get("/v1/get-user-credits").json()["credits"] == 6

    again = new.run("restore", str(file))
    assert again.returncode == 1
    assert "Nothing was restored. The broker has the key `ann`" in " ".join(again.stderr.split())
    assert client.get("/v1/get-user-credits").json()["credits"] == 6
    replaced = new.run("restore", str(file), "--replace")
    assert replaced.returncode == 0, replaced.stderr
    assert client.get("/v1/get-user-credits").json()["credits"] == 8
    assert entries(new.redis, 1)[0].act == "restore"


def test_a_restore_that_is_killed_goes_on_when_it_is_typed_again(
    stacks: tuple[Stack, Stack], tmp_path: Path
) -> None:
    old, new = stacks
    count, file = 400, tmp_path / "backup.jsonl"
    secrets = [
        create_key(old.redis, NewKey(name=f"key {number}", credits=Decimal(number)))
        for number in range(count)
    ]
    lines = [line.model_dump_json() for line in lines_of_backup(old.redis)]
    file.write_text("".join(f"{line}\n" for line in lines))
    new.start_gateway()
    killed = start_command(
        ["restore", str(file)], new.environ, tmp_path / "output", tmp_path / "errors"
    )
    eventually(lambda: int(str(new.redis.hget(keyspace.RESTORE, "line") or 0)) > 20)
    killed.kill()
    killed.wait()
    done = new.redis.hlen(keyspace.KEY_NAMES)
    assert 0 < done < count
    again = new.run("restore", str(file))
    assert again.returncode == 0, again.stderr
    assert "lines that an earlier try had restored" in " ".join(again.stderr.split())
    assert new.redis.hlen(keyspace.KEY_NAMES) == count
    for number in (0, done, count - 1):
        credits_ = new.http(secrets[number]).get("/v1/get-user-credits").json()["credits"]
        assert credits_ == number
    repeated = [line.model_dump() for line in lines_of_backup(new.redis)][1:]
    assert repeated == [json.loads(line) for line in lines[1:]]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A broker with a key, and no server."""
    (tmp_path / "data").mkdir()
    with Stack(tmp_path / "data") as stack:
        create_key(stack.redis, NewKey(name="ann"))
        yield stack


def piped(stack: Stack, *arguments: str, told: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command with pipes for its input and output."""
    return subprocess.run(
        [COMMAND, *arguments],
        input=told,
        capture_output=True,
        check=False,
        env=stack.environ,
        cwd=stack.folder,
    )


def said(ended: subprocess.CompletedProcess[Any]) -> str:
    text = ended.stderr
    return " ".join((text if isinstance(text, str) else text.decode()).split())


def test_a_backup_goes_through_pipes(stack: Stack) -> None:
    written = piped(stack, "backup", "-")
    assert written.returncode == 0, said(written)
    assert said(written).endswith("of the history to standard output.")
    kinds = [json.loads(line)["kind"] for line in written.stdout.splitlines()]
    assert kinds == ["backup", "key", "end"]
    for name in ("-", "/dev/stdin"):
        stack.redis.flushall()
        restored = piped(stack, "restore", name, told=written.stdout)
        assert restored.returncode == 0, said(restored)
        assert stack.redis.hkeys(keyspace.KEY_NAMES) == ["ann"]
    cut = piped(stack, "restore", "-", told=written.stdout[:-20])
    assert cut.returncode == 1
    assert "stdin, line 3: Invalid JSON" in said(cut)


def test_a_backup_replaces_regular_files_only(stack: Stack, tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    output = tmp_path / "output"
    output.symlink_to("/dev/stdout")
    for place, why in {
        pipe: "is no regular file: give the name of one, or - for standard output.",
        output: "is no regular file",
        folder: "is a folder",
        tmp_path / "none" / "file": "There is no folder",
    }.items():
        refused = piped(stack, "backup", str(place))
        assert refused.returncode == 1
        assert why in said(refused)
        assert refused.stdout == b""
    assert pipe.is_fifo()
    assert output.is_symlink()


def test_a_link_to_a_backup_stays_one(stack: Stack, tmp_path: Path) -> None:
    target, link = tmp_path / "monday", tmp_path / "latest"
    target.touch(0o644)
    link.symlink_to(target)
    assert stack.run("backup", str(link)).returncode == 0
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text().count("\n") == 3


def test_overlapping_backups_leave_the_last_good_one(stack: Stack, tmp_path: Path) -> None:
    """Another one of the same file is being written: it has a draft of its own."""
    file = tmp_path / "backup"
    others = [tmp_path / "backup.part", tmp_path / "backup.1234.part"]
    for other in others:
        other.write_text("half a backup")
    assert stack.run("backup", str(file)).returncode == 0
    assert [other.read_text() for other in others] == ["half a backup"] * 2
    assert file.read_text().count("\n") == 3
