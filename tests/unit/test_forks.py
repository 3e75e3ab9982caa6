from __future__ import annotations

import os
from importlib import import_module

from tests.support.forks import can_fork


def test_processes_are_forked_although_a_test_has_imported_torchs_compiler() -> None:
    import_module("torch._inductor.runtime.cache_dir_utils")
    assert can_fork(os.environ)


def test_a_variable_that_imports_may_read_needs_a_process_of_its_own() -> None:
    assert not can_fork({**os.environ, "LD_PRELOAD": "/usr/lib/faketime.so"})
