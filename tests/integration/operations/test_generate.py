"""`mochi-server generate` and `finish`: drafts, and several videos at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import COMMAND, Stack, eventually

POND = ("generate", "a pond", "--frames", "2", "--steps", "20", "--seed", "7")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("generate")
    with Stack(folder, engine="fake", fake_step_seconds="0.01", price_base="0.1") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def run(stack: Stack, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {"MOCHI_URL": stack.url, "MOCHI_API_KEY": stack.key()} | settings
    return stack.run(*arguments, **environ)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ids(stack: Stack, key: str, count: int) -> list[str]:
    """Those of the key's requests, when there are so many; in the order of their seeds."""

    def listed() -> list[str]:
        videos = stack.http(key).get("/v1/videos?order=asc").json()["data"]
        return [each["id"] for each in sorted(videos, key=lambda each: int(each["seed"]))]

    return eventually(lambda: found if len(found := listed()) == count else [])


def test_generate_makes_a_draft_and_finish_the_video_of_it(stack: Stack, tmp_path: Path) -> None:
    environ = {"MOCHI_API_KEY": stack.key()}
    files = [str(tmp_path / name) for name in ("draft.mp4", "finished.mp4", "whole.mp4")]
    drafted = run(stack, *POND, "--draft", "5", "-o", files[0], **environ)
    assert drafted.returncode == 0, drafted.stderr
    words = drafted.stderr.split()
    assert "A draft: 5 of 20 steps." in " ".join(words)
    request_id = words[words.index("finish") + 1]
    for arguments in (("finish", request_id, "-o", files[1]), (*POND, "-o", files[2])):
        done = run(stack, *arguments, **environ)
        assert done.returncode == 0, done.stderr
        assert "A draft" not in done.stderr
    draft, finished, whole = (Path(file).read_bytes() for file in files)
    assert finished == whole != draft


def test_finish_says_why_it_cannot(stack: Stack, tmp_path: Path) -> None:
    done = run(stack, "finish", "no-draft", "-o", str(tmp_path / "pond.mp4"))
    assert done.returncode == 1
    assert "no-draft not found" in done.stderr
    assert not names(tmp_path)


def test_several_videos_are_named_by_their_seeds(stack: Stack, tmp_path: Path) -> None:
    several = ("--count", "3", "--draft", "5", "--poster", "-o", str(tmp_path / "pond.mp4"))
    done = run(stack, *POND, *several)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == {
        f"pond-{seed}{rest}" for seed in (7, 8, 9) for rest in (".mp4", "-poster.jpg")
    }
    assert done.stderr.count("mochi-server finish ") == 3
    alone = tmp_path / "alone.mp4"
    run(stack, *POND, "--seed", "8", "--draft", "5", "-o", str(alone))
    assert alone.read_bytes() == (tmp_path / "pond-8.mp4").read_bytes()


def test_without_a_name_no_file_of_several_is_overwritten(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "mochi-8.gif").touch()
    done = subprocess.run(
        [COMMAND, *POND, "--count", "2", "--format", "gif"],
        check=False,
        env=stack.environ | {"MOCHI_URL": stack.url, "MOCHI_API_KEY": stack.key()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == {"mochi-7.gif", "mochi-8.gif", "mochi-8-2.gif"}
    assert not (tmp_path / "mochi-8.gif").stat().st_size


def test_a_refusal_of_several_makes_none(stack: Stack, tmp_path: Path) -> None:
    key = stack.key(credits="0.1")
    output = ("-o", str(tmp_path / "pond.mp4"))
    done = run(stack, *POND, "--count", "2", *output, MOCHI_API_KEY=key)
    assert done.returncode == 1
    assert "the 2 requests cost up to 0.2" in done.stderr
    assert "from 1 to 8; got 9" in run(stack, *POND, "--count", "9", *output).stderr
    assert not names(tmp_path)


def start(stack: Stack, folder: Path, key: str) -> subprocess.Popen[str]:
    """Begin to make three videos that take a while."""
    several = ("--steps", "75", "--count", "3", "-o", str(folder / "pond.mp4"))
    return subprocess.Popen(
        [COMMAND, *POND, *several],
        env=stack.environ | {"MOCHI_URL": stack.url, "MOCHI_API_KEY": key},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(stack: Stack, request_id: str) -> str:
    def look() -> str:
        status = stack.record(request_id)["status"]
        return status if status in {"COMPLETED", "FAILED"} else ""

    return eventually(look)


def test_one_of_several_that_fails_leaves_the_others(stack: Stack, tmp_path: Path) -> None:
    key = stack.key()
    with start(stack, tmp_path, key) as process:
        last = ids(stack, key, 3)[-1]
        stack.http(key).put(f"/v2/requests/{last}/cancel")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert names(tmp_path) == {"pond-7.mp4", "pond-8.mp4"}
    assert f"1 of 3 videos is missing. Request {last}: The request was cancelled" in said


def test_ctrl_c_cancels_all_that_have_not_ended(stack: Stack, tmp_path: Path) -> None:
    key = stack.key()
    with start(stack, tmp_path, key) as process:
        requests = ids(stack, key, 3)
        eventually((tmp_path / "pond-7.mp4").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    ended = [end(stack, each) for each in requests]
    assert ended[0] == "COMPLETED"
    assert ended[2] == "FAILED"  # the second may have ended meanwhile
    assert said.count("The request is cancelled.") == ended.count("FAILED")
    assert "pond-9.mp4" not in names(tmp_path)
