from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.forks import can_fork, forks


def test_processes_are_forked_although_a_library_has_set_a_variable_of_its_own() -> None:
    import_module("torch._inductor.runtime.cache_dir_utils")
    assert can_fork(os.environ)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "OTEL_SERVICE_NAME", "PYTHONOPTIMIZE"])
def test_a_variable_that_is_read_but_once_needs_a_new_process(name: str) -> None:
    assert not can_fork({**os.environ, name: "1"})


def test_a_fork_has_its_own_arguments_variables_outputs_and_status(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.environ['MOCHI_PORT'], os.getsid(0) == os.getpid(), flush=True)\n"
        "sys.exit('refused')\n"
    )
    output, errors = tmp_path / "output", tmp_path / "errors"
    environ = {**os.environ, "MOCHI_PORT": "1"}
    process = forks().start([str(script), "up", "--mock"], environ, output, errors)
    assert process.wait() == 1
    assert output.read_text() == "['up', '--mock'] 1 True\n"
    assert errors.read_text() == "refused\n"
