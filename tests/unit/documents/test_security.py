"""`docs/operate/security.md` names tests that exist, and the one for leaks can find one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis

from server.keys.lookup import new_secret
from tests.support.jobs import submit
from tests.support.leaks import leaks

TESTS = Path(__file__).parents[2]
DOCUMENT = (TESTS.parent / "docs" / "operate" / "security.md").read_text()
ATTACKS = set(range(1, 17))


def test_every_attack_has_a_row_with_tests_that_there_are() -> None:
    rows = re.findall(r"^\| A(\d+) \|.*\|(.*)\|$", DOCUMENT, re.MULTILINE)
    assert {int(number) for number, _ in rows} == ATTACKS
    assert all(re.search(r"`\w+/[\w/]+\.py::test_\w+`", tests) for _, tests in rows)


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", DOCUMENT)
    assert len(named) > len(ATTACKS)
    missing = [
        (file, test) for file, test in named if f"def {test}(" not in (TESTS / file).read_text()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "line",
    [
        "{secret}",
        "GET /v2/videos/1.mp4?signature=abc",
        f"path=/v2/videos/{'a' * 43}/1.mp4",
        "prompt='a pond at night'",
    ],
)
def test_a_log_that_tells_a_secret_is_found_out(
    redis: Redis, redis_url: str, tmp_path: Path, line: str
) -> None:
    submit(redis_url, "a pond at night")
    log = tmp_path / "server-0.log"
    log.write_text('{"event": "request.accepted", "path": "/v2/mochi-1"}\n')
    assert leaks(tmp_path, redis) == set()
    log.write_text(line.format(secret=new_secret()))
    assert len(leaks(tmp_path, redis)) == 1
