"""F30: ten thousand requests wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import batched
from pathlib import Path
from statistics import quantiles

import pytest

from tests.faults.client import Client
from tests.jobs import intake, params, pop
from tests.stack import Stack
from worker import keyspace
from worker.intake import Intake
from worker.store import Lease

MOST_WAITING = 20_000
SHARES = (1, 1, 3)
