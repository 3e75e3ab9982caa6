from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from server.api.links import EVENTS, VIDEO, Links, LinkSigner, VideoLinks, load_signer
from tests.support.jobs import ask_gateway
from worker.job import Job, Status
from worker.outputs.local import LocalOutputs
from worker.store.gateway_side import GatewayStore

REQUEST_ID = "00000000-0000-4000-8000-000000000000"
LINKS = Links("https://videos.example", REQUEST_ID)


def signer_of_a_new_gateway(url: str) -> LinkSigner:
    return ask_gateway(url, load_signer)


def test_links_are_absolute_and_where_the_contract_has_them() -> None:
    assert LINKS.status == f"https://videos.example/v2/requests/{REQUEST_ID}/status"
    assert LINKS.response == f"https://videos.example/v2/requests/{REQUEST_ID}"
    assert LINKS.poll == f"https://videos.example/v1/requests/{REQUEST_ID}"


def test_all_gateways_of_a_broker_sign_alike(redis_url: str) -> None:
    one, other = (signer_of_a_new_gateway(redis_url) for _ in range(2))
    assert LINKS.video(one) == LINKS.video(other)


def test_gateways_of_other_brokers_sign_otherwise(redis: Redis, redis_url: str) -> None:
    one = signer_of_a_new_gateway(redis_url)
    redis.flushall()
    assert LINKS.video(one) != LINKS.video(signer_of_a_new_gateway(redis_url))


def test_a_signature_is_for_one_request(redis_url: str) -> None:
    signer = signer_of_a_new_gateway(redis_url)
    base, signature, name = LINKS.video(signer).rsplit("/", 2)
    assert base == "https://videos.example/v2/videos"
    assert name == f"{REQUEST_ID}.mp4"
    assert len(signature) >= 43
    assert signature not in Links(LINKS.base, REQUEST_ID.replace("8", "9")).video(signer)


def test_a_link_lives_as_long_as_the_record_by_the_clock_of_the_broker(tmp_path: Path) -> None:
    def seconds_left(expires_at: int) -> float:
        job = Job("id", "owner", Status.COMPLETED, "{}", 1, 0, expires_at=expires_at, seen_at=1_000)
        return links.seconds_left(job)

    store = GatewayStore(AsyncRedis(), most_waiting=1, retention_seconds=60)
    links = VideoLinks(LocalOutputs(tmp_path), store, retention_seconds=60)
    assert [seconds_left(ms) for ms in (31_000, 2_000, 1_001_000)] == [30, 5, 60]


@pytest.mark.parametrize("text", ["", "a", "é", "\ud800", "x" * 100_000])
def test_only_the_signature_itself_opens_and_for_one_purpose(text: str) -> None:
    signer = LinkSigner("secret")
    signature = signer.sign(VIDEO, REQUEST_ID)
    assert signer.is_signed(VIDEO, REQUEST_ID, signature)
    assert not signer.is_signed(EVENTS, REQUEST_ID, signature)
    assert not signer.is_signed(VIDEO, REQUEST_ID, text)
    assert not signer.is_signed(VIDEO, REQUEST_ID, signature + text) or not text
