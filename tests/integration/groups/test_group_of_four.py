"""A group in which the processes of a branch share its tokens, too."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.groups.test_group_of_two import SLOW, gone, reaches, submit, video
from tests.support.family import children_with
from tests.support.stack import Stack, eventually
from tests.support.wire import ended


def followers_of(worker: int) -> list[psutil.Process]:
    """In the order of their ranks."""
    found = children_with(worker, "worker.runtime.follower")
    return sorted(found, key=lambda child: int(child.cmdline()[4]))


@pytest.mark.slow
def test_a_kill_of_any_rank_ends_the_group_and_the_request_runs_again(tmp_path: Path) -> None:
    with Stack(tmp_path, mock="true", lease_seconds="2") as stack:
        stack.start_gateway()
        client = stack.http()
        single = stack.start_worker()
        expected = video(client, submit(client))
        single.terminate()
        assert single.wait(30) == 0
        for rank in range(4):
            worker = stack.start_worker(gpus_per_video="4")
            followers = followers_of(worker.pid)
            assert len(followers) == 3
            assert video(client, submit(client)) == expected
            request_id = submit(client, SLOW)
            reaches(stack, request_id, "denoising", step=1)
            [psutil.Process(worker.pid), *followers][rank].kill()
            assert worker.wait(20) == (os.EX_TEMPFAIL if rank else -9)
            for follower in followers:
                eventually(partial(gone, follower))
            last = stack.start_worker()
            assert ended(client, request_id)["status"] == "COMPLETED"
            assert stack.record(request_id)["attempt"] == "2"
            last.terminate()
            assert last.wait(30) == 0


def test_mock_weights_say_how_many_processes_can_share_a_video(tmp_path: Path) -> None:
    with Stack(tmp_path, mock="true", gpus_per_video="6") as stack:
        worker = stack.start("worker")
        assert worker.wait(60) == os.EX_CONFIG
        text = "Mock weights have too few heads for MOCHI_GPUS_PER_VIDEO=6: at most 4 processes"
        assert text in stack.log_of(worker)
