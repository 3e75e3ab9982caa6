"""No script reads or writes data whose schema this release does not read."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from tests.support.jobs import submit
from worker.broker import schema
from worker.broker.connection import broker_errors, check_schema, check_schema_at_start
from worker.broker.schema import READS, SCHEMA, SCHEMA_KEY
from worker.errors import SchemaError
from worker.store import keyspace, scripts

OTHER = SCHEMA + 1
ROOT = Path(__file__).parents[4]
LUA = (ROOT / "worker" / "store" / "lua").glob("*/*.lua")
SCRIPTS = sorted(path.stem for path in LUA if path.parent.name != "common")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_refuses_data_of_another_schema_and_changes_nothing(
    redis: Redis, redis_url: str, name: str
) -> None:
    submit(redis_url)
    redis.set(SCHEMA_KEY, OTHER)
    before = {key: redis.dump(key) for key in redis.keys("*")}
    script = redis.register_script(scripts.source(name))
    with pytest.raises(ResponseError, match=f"^MOCHISCHEMA {OTHER}$"):
        script(keyspace.for_scripts("an-id"), ["an-id"])
    assert {key: redis.dump(key) for key in redis.keys("*")} == before


def test_the_refusal_names_both_schemas_and_the_remedy(redis: Redis, redis_url: str) -> None:
    redis.set(SCHEMA_KEY, OTHER)
    with pytest.raises(SchemaError) as refused:
        submit(redis_url)
    assert f"The broker's data have schema {OTHER}" in str(refused.value)
    assert f"reads schema {SCHEMA}." in str(refused.value)
    assert "docs/operate/upgrading.md" in str(refused.value)
    assert refused.value.reason == str(refused.value)  # once in a log line, too
    with pytest.raises(SchemaError):
        check_schema(redis)
    with pytest.raises(SchemaError):
        check_schema_at_start(redis_url)


def test_the_first_script_marks_an_empty_broker(redis: Redis, redis_url: str) -> None:
    check_schema(redis)
    assert redis.get(SCHEMA_KEY) is None
    submit(redis_url)
    assert redis.get(SCHEMA_KEY) == str(SCHEMA)
    redis.flushall()  # also without a restart of the processes
    submit(redis_url)
    assert redis.get(SCHEMA_KEY) == str(SCHEMA)


def test_a_release_that_reads_both_schemas_raises_the_mark_and_shuts_the_older_out(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(redis_url)
    alive = scripts.source("alive")
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "SCHEMA", OTHER)
        patch.setattr(scripts, "READS", READS | {OTHER})
        newer = scripts.source.__wrapped__("alive")
    redis.register_script(newer)(keyspace.for_scripts())
    assert redis.get(SCHEMA_KEY) == str(OTHER)
    with pytest.raises(SchemaError), broker_errors():
        redis.register_script(alive)(keyspace.for_scripts())
    redis.register_script(newer)(keyspace.for_scripts())


def test_a_broker_that_is_away_stops_no_start(tmp_path: Path) -> None:
    check_schema_at_start(f"unix://{tmp_path}/none.sock")


def test_a_release_reads_what_it_writes() -> None:
    assert SCHEMA in READS
    # The version of a build from a commit may have any digit.
    assert schema.refusal("4711").count("schema 4711") == 2
