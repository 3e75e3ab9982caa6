"""Marks of AI in the videos of real servers, verified with the command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx2
import pytest
from c2pa import Reader
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.stack import COMMAND, Stack
from tests.unit.worker.support.certificates import issued
from worker.provenance.label import AI_MADE

POND = {"prompt": "a pond", "frames": 3, "steps": 10}
FAKE = {"engine": "fake", "fake_step_seconds": "0.01"}
WIDE = {"COLUMNS": "400", "NO_COLOR": "1"}
BAD_ARGUMENT = 2
"""The exit status of a command line that is wrong."""


@pytest.fixture
def video(server: Stack, tmp_path: Path) -> Path:
    """A video, as the SDK's user gets it."""
    path = tmp_path / "pond.mp4"
    path.write_bytes(httpx2.get(server.sdk().run("mochi-1", **POND)["output"]).content)
    return path


def verify(stack: Stack, video: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return stack.run("provenance", "verify", str(video), *options, **WIDE)


def test_a_video_is_verified_as_this_servers_own(server: Stack, video: Path) -> None:
    done = verify(server, video)
    assert (done.returncode, done.stderr) == (0, "")
    first, *said = done.stdout.splitlines()
    assert first == (
        f"{video}: pictures and texts unchanged, signed by a certificate of this server."
    )
    assert said[0] == "  source: AI made it (trainedAlgorithmicMedia)"
    assert said[1] == "  model: light mock"
    assert said[2].startswith("  software: mochi-server ")
    assert said[3].startswith("  signer: mochi-server, mochi-server ")
    assert len(said) == 4


def test_the_librarys_own_reader_finds_the_video_valid(video: Path) -> None:
    with Reader(video) as reader:
        assert reader.get_validation_state() == "Valid"


def test_a_blocking_call_gives_a_signed_video_too(server: Stack, tmp_path: Path) -> None:
    path = tmp_path / "pond.mp4"
    path.write_bytes(server.sdk().run_sync("mochi-1", **POND).content)
    assert verify(server, path).returncode == 0


def test_a_changed_video_and_one_without_a_manifest_are_told_with_the_reason(
    server: Stack, video: Path
) -> None:
    data = bytearray(video.read_bytes())
    data[data.index(b"mdat") + 40] ^= 1
    video.write_bytes(data)
    done = verify(server, video)
    assert done.returncode == 1
    assert done.stdout == f"{video}: invalid: it was changed after it was signed.\n"
    video.write_bytes(data[: data.index(b"uuid") - 4] + data[data.index(b"moov") - 4 :])
    done = verify(server, video)
    assert done.returncode == 1
    assert "unsigned: it has no C2PA manifest: it was never signed, or its marks" in done.stdout
    assert "; its metadata, which anybody can write, says AI made it." in done.stdout


def test_another_machine_verifies_with_the_certificate_that_the_server_prints(
    server: Stack, video: Path, tmp_path: Path
) -> None:
    elsewhere = {"MOCHI_DATA_DIR": str(tmp_path / "elsewhere")}
    done = server.run("provenance", "verify", str(video), **elsewhere)
    assert done.returncode == 1
    assert "untrusted: its certificate leads to none that is trusted here." in done.stdout
    assert "--trust" in done.stdout
    root = tmp_path / "root.pem"
    root.write_text(server.run("provenance", "certificate").stdout)
    options = ("--trust", str(root), "--json")
    done = server.run("provenance", "verify", str(video), *options, **elsewhere)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["verdict"], found["reason"], found["codes"]) == ("trusted", "", [])
    assert (found["ai_made"], found["source"]) == (True, AI_MADE)
    assert (found["model"], found["prompt"]) == ("light mock", "")
    assert not (tmp_path / "elsewhere").exists()


def test_the_text_around_a_certificate_may_be_in_any_encoding(
    server: Stack, video: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root.pem"
    printed = server.run("provenance", "certificate").stdout
    root.write_bytes("Müller\n".encode("latin-1") + printed.encode())
    done = verify(server, video, "--trust", str(root))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("ImportError('no c2pa')", "A library is not installed (no c2pa). In a clone of the"),
        ("OSError('GLIBC_2.99 not found')", "c2pa-python does not load here: GLIBC_2.99 not"),
        ("RuntimeError('no symbol')", "c2pa-python does not load here: no symbol."),
    ],
)
def test_without_the_library_a_video_is_not_said_to_be_wrong(
    tmp_path: Path, raised: str, text: str
) -> None:
    """The exit status 1 would be for a video that was checked."""
    (tmp_path / "c2pa.py").write_text(f"raise {raised}")
    environ = os.environ | {"MOCHI_DATA_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    command = [COMMAND, "provenance", "verify", __file__]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (os.EX_CONFIG, False)
    assert text in done.stderr


def test_the_help_names_all_files_that_can_be_verified(server: Stack) -> None:
    said = server.run("provenance", "verify", "--help").stdout
    assert "An MP4, a GIF or a JPEG." in said


def in_shell(stack: Stack, script: str, video: Path) -> subprocess.CompletedProcess[str]:
    environ = stack.environ | WIDE | {"MOCHI": str(COMMAND), "VIDEO": str(video)}
    command = ["/bin/bash", "-c", script]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What the command said of an argument, without the frame around it."""
    assert (done.returncode, done.stdout) == (BAD_ARGUMENT, "")
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/proc/self/mem", "'file': '/proc/self/mem' cannot be read: Input/output error."),
        ("/proc/self", "'file': file '/proc/self' is a directory."),
        ("/proc/self/none", "'file': file '/proc/self/none' does not exist."),
    ],
    ids=["unreadable", "folder", "missing"],
)
def test_what_cannot_be_read_is_not_said_to_be_wrong(server: Stack, path: str, text: str) -> None:
    assert text in refusal(verify(server, Path(path)))


def test_a_video_in_a_pipe_is_not_said_to_be_wrong(server: Stack, video: Path) -> None:
    done = in_shell(server, 'cat "$VIDEO" | "$MOCHI" provenance verify /dev/stdin', video)
    assert (
        "'file': '/dev/stdin' is not a regular file. A pipe cannot be verified: save the video "
        "to a file, and verify that."
    ) in refusal(done)


@pytest.mark.parametrize(
    "content",
    [b"", b"ftyp\x00\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["empty", "video", "torn"],
)
def test_a_file_without_a_certificate_cannot_be_trusted(
    server: Stack, video: Path, tmp_path: Path, content: bytes
) -> None:
    root = tmp_path / "root.pem"
    root.write_bytes(content)
    said = refusal(verify(server, video, "--trust", str(root)))
    assert f"Invalid value for '--trust': '{root}' holds no PEM certificate. Expected" in said
    assert "-----BEGIN CERTIFICATE-----" in said
    assert "mochi-server provenance certificate" in said
    assert "http" not in said


def test_a_certificate_may_come_through_a_pipe(server: Stack, video: Path) -> None:
    """As of `--trust <(ssh gateway mochi-server provenance certificate)`."""
    script = '"$MOCHI" provenance verify "$VIDEO" --trust <("$MOCHI" provenance certificate)'
    done = in_shell(server, script, video)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_on_which_no_worker_has_run_has_no_certificate(
    server: Stack, tmp_path: Path
) -> None:
    done = server.run("provenance", "certificate", MOCHI_DATA_DIR=str(tmp_path))
    assert done.returncode == os.EX_CONFIG
    assert "There is no certificate in" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_operators_certificate_and_prompt_are_in_the_video(tmp_path: Path) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    own = {"c2pa_cert": str(cert), "c2pa_key": str(key), "c2pa_prompt": "true"}
    with Stack(tmp_path, **FAKE, **own) as stack:
        stack.start_gateway()
        worker = stack.start_worker()
        path = tmp_path / "pond.mp4"
        path.write_bytes(stack.sdk().run_sync("mochi-1", **POND).content)
        first, *said = verify(stack, path).stdout.splitlines()
        # Its authority may serve others, too.
        assert first == (
            f"{path}: pictures and texts unchanged, signed by a certificate that leads to one of "
            f"{cert}."
        )
        assert "  signer: Example, Example Films" in said
        found = json.loads(verify(stack, path, "--json").stdout)
        assert found["verdict"] == "trusted"
        assert found["signer"] == "Example, Example Films"
        assert found["prompt"] == "a pond"
        assert '"marks": "c2pa"' in stack.log_of(worker)
        assert '"marking_seconds"' in stack.log_of(worker)


def test_a_certificate_that_cannot_sign_stops_the_start(tmp_path: Path) -> None:
    cert, key = issued(tmp_path, ec.generate_private_key(ec.SECP256R1()), days=-1)
    with Stack(tmp_path, **FAKE, c2pa_cert=str(cert), c2pa_key=str(key)) as stack:
        worker = stack.start("worker")
        assert worker.wait(30) == os.EX_CONFIG
        assert "MOCHI_C2PA_CERT and MOCHI_C2PA_KEY cannot sign" in stack.log_of(worker)
        assert "Traceback" not in stack.log_of(worker)


def test_where_marking_is_off_a_video_is_the_encoders(tmp_path: Path) -> None:
    with Stack(tmp_path, **FAKE, provenance="off") as stack:
        stack.start_gateway()
        worker = stack.start_worker()
        content = stack.sdk().run_sync("mochi-1", **POND).content
        assert b"uuid" not in content
        assert AI_MADE.encode() not in content
        assert '"marks": "none"' in stack.log_of(worker)
        assert "marking_seconds" not in stack.log_of(worker)
