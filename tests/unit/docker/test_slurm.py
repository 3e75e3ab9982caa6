"""The job of Slurm, and the image of Apptainer that it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import ServerSettings
from server.supervisor.children import REQUEUE_SECONDS
from worker.broker.embedded import STOP_SECONDS

ROOT = Path(__file__).parents[3]
DEFINITION = (ROOT / "docker" / "slurm" / "mochi.def").read_text()
JOB = ROOT / "docker" / "slurm" / "mochi.sbatch"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCKERIGNORE = (ROOT / ".dockerignore").read_text()
EARLY_SECONDS = 60
"""How much earlier than asked Slurm may send a signal."""
SCRIPTS_OF_THE_DOCKERFILE = {"docker/image/requirements.py", "docker/image/sbom.py"}
STATUSES = """#!/bin/sh
# In place of Slurm: ends as the next line of a file says, and notes what it was to run.
echo "$MOCHI_DATA_DIR: $*" >>{folder}/ran
status=$(head -n 1 {folder}/statuses)
sed -i 1d {folder}/statuses
exit "$status"
"""


def ran(folder: Path, *arguments: str, statuses: list[int]) -> tuple[int, list[str]]:
    """The status of the job and what it ran, by processes that end with `statuses`."""
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    programs = {"srun": STATUSES.format(folder=folder), "sleep": "#!/bin/sh\n"}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(JOB), *arguments],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(folder),
            "IMAGE": "/images/a mochi.sif",
        },
        check=False,
        timeout=60,
    )
    return done.returncode, (folder / "ran").read_text().splitlines()


def test_a_job_runs_up_in_the_image_and_ends_when_that_has_drained(tmp_path: Path) -> None:
    data = tmp_path / "mochi"
    run = f"{data}: apptainer run --nv --bind {data} /images/a mochi.sif up"
    assert ran(tmp_path, statuses=[0]) == (0, [run])
    assert data.is_dir()


def test_a_job_starts_a_worker_that_died_again_but_not_with_a_wrong_setting(tmp_path: Path) -> None:
    status, runs = ran(tmp_path, "worker", "--fp8", statuses=[75, 137, 78])
    assert status == 78
    assert len(runs) == 3
    assert all(run.endswith("mochi.sif worker --workers 1 --fp8") for run in runs)


def test_a_job_of_one_card_runs_one_worker_unless_the_command_says_how_many(tmp_path: Path) -> None:
    _, [run] = ran(tmp_path, "worker", statuses=[0])
    assert run.endswith("mochi.sif worker --workers 1")
    _, [_, run] = ran(tmp_path, "worker", "--workers", "4", statuses=[0])
    assert run.endswith("mochi.sif worker --workers 1 --workers 4")  # the last one counts


def test_a_job_is_told_of_its_end_early_enough_to_drain() -> None:
    (seconds,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", JOB.read_text(), re.MULTILINE)
    drain = ServerSettings.model_fields["drain_seconds"].default
    assert int(seconds) - EARLY_SECONDS > drain + REQUEUE_SECONDS + 2 * STOP_SECONDS


def test_a_job_names_no_setting_that_does_not_exist() -> None:
    names = set(re.findall(r"MOCHI_[A-Z0-9_]+", JOB.read_text() + DEFINITION))
    assert names <= {f"MOCHI_{name.upper()}" for name in ServerSettings.model_fields}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_accepts_the_job() -> None:
    checked = subprocess.run(["/usr/bin/shellcheck", str(JOB)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout.decode()


def test_the_image_of_apptainer_is_made_of_what_the_dockers_is() -> None:
    (base,) = re.findall(r"^From: (.+)$", DEFINITION, re.MULTILINE)
    assert f"\nARG PYTHON_IMAGE={base}\n" in DOCKERFILE
    lines = DEFINITION.partition("%files\n")[2].partition("\n\n")[0].splitlines()
    pairs = [line.split() for line in lines]
    of_docker = set(re.findall(r"^!(\S+?)/?$", DOCKERIGNORE, re.MULTILINE))
    assert {source for source, _ in pairs} == of_docker - SCRIPTS_OF_THE_DOCKERFILE
    assert all(target == f"/src/{source}" for source, target in pairs)
