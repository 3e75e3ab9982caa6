"""Moderation by real processes: what a client sees of a block, and what is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from segmind import InferenceFailed

from models.mock.fake_engine import FakeEngine
from models.mock.scenario import SCENARIO
from models.request.params import GenerateParams
from tests.support.models.classifiers import write_guard, write_image_classifier
from tests.support.stack import Stack, eventually

TERMS = """\
# ours
[real people]
ann o'hara
"""
FRAMES = 10


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, and a worker with the fake engine that judges all that it can."""
    folder = tmp_path_factory.mktemp("moderation")
    terms = folder / "terms.txt"
    terms.write_text(TERMS)
    with Stack(folder, engine="fake", fake_step_seconds="0.01", checkpoint_steps="2") as stack:
        stack.start_gateway()
        stack.start_worker(
            moderation_terms=str(terms),
            moderation_text=str(write_guard(folder / "guard")),
            moderation_frames=str(write_image_classifier(folder / "images")),
        )
        yield stack


@cache
def prompt_for(*, is_bright: bool) -> str:
    """A prompt of which the fake engine makes dark frames, or bright ones."""
    for number in count():
        prompt = f"pond {number}"
        params = GenerateParams(prompt=prompt, frames=FRAMES, steps=10)
        frame = next(FakeEngine(0).generate(params, lambda *_: None).frames)
        # The classifier's limit is in the middle; these are well off it.
        if sum(frame) / len(frame) > 175 if is_bright else sum(frame) / len(frame) < 90:
            return prompt
    raise AssertionError


def submit(stack: Stack, prompt: str, **params: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "steps": 10, "frames": FRAMES} | params
    answer = stack.http().post("/v2/mochi-1", json=body)
    assert answer.status_code == 200
    submitted: dict[str, Any] = answer.json()
    return submitted


def ended(stack: Stack, prompt: str, **params: Any) -> dict[str, Any]:
    """The record of a request, when it has ended."""
    request_id = submit(stack, prompt, **params)["request_id"]

    def record() -> dict[str, Any] | None:
        record = stack.record(request_id)
        return record | {"request_id": request_id} if "ended_at" in record else None

    return eventually(record) or {}


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("ANN  O\u2019HARA at a pond", "real people"),
        ("a bomb at a pond", "Violent"),
    ],
)
def test_a_blocked_prompt_is_422_wherever_it_is_asked_for_and_the_engine_never_ran(
    stack: Stack, prompt: str, category: str
) -> None:
    """Or it would have carried out the scenario, and be out of memory."""
    client = stack.http()
    body = {"prompt": prompt, "steps": 10, "frames": FRAMES, SCENARIO: "out_of_memory"}
    submitted = client.post("/v2/mochi-1", json=body).json()
    urls = [submitted[name] for name in ("status_url", "response_url", "poll_url")]
    eventually(lambda: client.get(urls[0]).status_code == 422)
    answers = [client.get(url) for url in urls] + [client.post("/v1/mochi-1", json=body)]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["status"] == "FAILED"
        assert answer.json()["error_code"] == "content_blocked"
        assert answer.json()["error"] == f"Moderation has blocked the prompt: {category}."
        assert "cost" not in answer.json()["metrics"]
        assert prompt not in answer.text


def test_the_sdk_raises_what_says_that_a_frame_was_blocked(stack: Stack) -> None:
    prompt = prompt_for(is_bright=True)
    record = ended(stack, prompt)
    assert (record["status"], record["error_code"]) == ("FAILED", "content_blocked")
    assert record["error"] == "Moderation has blocked the frames: nsfw."
    assert "file_name" not in record
    with pytest.raises(InferenceFailed) as failed:
        stack.sdk().run("mochi-1", prompt=prompt, steps=10, frames=FRAMES)
    assert "Moderation has blocked the frames: nsfw." in str(failed.value.detail)


@pytest.mark.parametrize("stage", ["prompt", "frames"])
def test_a_blocked_request_leaves_no_file(stack: Stack, stage: str) -> None:
    prompt = "a bomb" if stage == "prompt" else prompt_for(is_bright=True)
    record = ended(stack, prompt, poster=True, last_frame=True, format="webm")
    assert f"blocked the {stage}" in record["error"]
    assert not {"poster_size", "last_frame_size"} & {*record}
    # The checkpoint goes a moment after the end.
    eventually(lambda: not [x for x in stack.outputs() if x.startswith(record["request_id"])])


def test_what_passes_is_published(stack: Stack) -> None:
    record = ended(stack, prompt_for(is_bright=False), negative_prompt="a bomb, ann o'hara")
    assert record["status"] == "COMPLETED"
    assert record["file_name"] in stack.outputs()


def test_the_log_names_stage_and_category_and_no_prompt(stack: Stack) -> None:
    prompt = prompt_for(is_bright=True)
    for one in ("a bomb here", prompt):
        ended(stack, one)
    log = stack.logs()
    assert '"prompt": ["terms", "text"], "frames": true, "event": "moderation"' in log
    blocks = [line for line in log.splitlines() if '"run.blocked"' in line]
    assert any('"stage": "prompt", "category": "Violent"' in line for line in blocks)
    assert any('"stage": "frames", "category": "nsfw"' in line for line in blocks)
    assert "a bomb here" not in log
    assert prompt not in log


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("MOCHI_MODERATION_TERMS", "/no/such/terms.txt", "MOCHI_MODERATION_TERMS=/no/such"),
        (
            "MOCHI_MODERATION_TEXT",
            "Qwen/Qwen3Guard-Gen-0.6B",
            "mochi-server weights pull --weights Qwen/Qwen3Guard-Gen-0.6B",
        ),
        ("MOCHI_MODERATION_FRAMES", "/no/such/model", "MOCHI_MODERATION_FRAMES=/no/such/model"),
    ],
)
def test_a_worker_does_not_start_without_what_it_is_to_judge_with(
    tmp_path: Path, setting: str, value: str, why: str
) -> None:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("MOCHI_")}
    own = {
        "MOCHI_ENGINE": "fake",
        "MOCHI_DATA_DIR": str(tmp_path),
        "MOCHI_REDIS_URL": "redis://127.0.0.1:1/0",
        setting: value,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker"],
        env=environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
