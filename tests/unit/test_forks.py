from __future__ import annotations

import os
from importlib import import_module

import pytest

from tests.support.forks import can_fork


def test_processes_are_forked_although_a_library_has_set_a_variable_of_its_own() -> None:
    import_module("torch._inductor.runtime.cache_dir_utils")
    assert can_fork(os.environ)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "OTEL_SERVICE_NAME", "PYTHONOPTIMIZE"])
def test_a_variable_that_is_read_but_once_needs_a_new_process(name: str) -> None:
    assert not can_fork({**os.environ, name: "1"})
