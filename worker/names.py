"""Names of workers: unique, and telling the host and process to look at."""

from __future__ import annotations

import os
import platform
from uuid import uuid4


def new_worker_name() -> str:
    """A name for this process: `HOST-PID-RANDOM`."""
    return f"{worker_name_prefix()}{os.getpid()}-{uuid4().hex[:8]}"


def worker_name_prefix() -> str:
    """How the names of all workers of this host begin."""
    return f"{platform.node()}-"
