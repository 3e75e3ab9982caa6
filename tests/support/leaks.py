"""What no log may hold: keys, signatures of links, prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from server.keys.lookup import PREFIX

MOST_RECORDS = 1000
SHORTEST_PROMPT = 5
"""Anything shorter stands in a log by chance."""
_SECRET = re.compile(
    rf"{PREFIX}[\w-]{{43}}|whsec_[\w+/]+|signature=[\w-]+|/v2/videos/[\w-]{{43}}/", re.IGNORECASE
)


def leaks(folder: Path, redis: Redis | None = None) -> set[str]:
    """What stands in the logs of `folder` and should not; prompts, if `redis` knows them."""
    log = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    prompts = () if redis is None else _prompts(redis)
    return {*_SECRET.findall(log), *(prompt for prompt in prompts if prompt in log)}


def _prompts(redis: Redis) -> Iterator[str]:
    """Those of requests that are not forgotten; none of a broker that is away."""
    try:
        names = islice(redis.scan_iter("mochi:request:*", count=MOST_RECORDS), MOST_RECORDS)
        with redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(name, "params")
            found = pipe.execute(raise_on_error=False)
    except RedisError:
        return
    for params in found:
        prompt = json.loads(params)["prompt"] if isinstance(params, str) else ""
        # A single word, as fuzzers make of the names in our code, stands in a log by itself.
        if len(prompt) >= SHORTEST_PROMPT and not prompt.isidentifier():
            yield prompt
