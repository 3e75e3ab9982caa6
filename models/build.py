"""Builds the engine that the settings choose. Imports torch only for Mochi."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from models.engine import EnergyCounter, Engine, Meter
from models.errors import EngineUnavailableError, not_installed
from models.group import Follower, Leader
from models.settings import EngineSettings, check_models, missing_libraries


def build_engine(settings: EngineSettings, cache_dir: Path, leader: Leader | None = None) -> Engine:
    """Build an engine and load its weights.

    Args:
        settings: which engine and weights.
        cache_dir: of weights and compiled code; made if missing.
        leader: of the group of cards that share each video; None for a single card.

    Raises:
        EngineUnavailableError: the engine cannot run on this machine; the text has the remedy.
    """
    check_models(settings)
    if settings.is_light_mock:
        try:
            from models.mock.fake_engine import FakeEngine  # noqa: PLC0415 (of an extra)
        except ImportError as error:
            raise not_installed(error, "'.[mock]'") from error
        return FakeEngine(settings.fake_step_seconds, loras=settings.named_loras)
    if sys.flags.optimize > 1:
        raise EngineUnavailableError(
            "Python leaves out docstrings here, which transformers needs. Start it without -OO and "
            "PYTHONOPTIMIZE=2."
        )
    if missing := missing_libraries():
        raise not_installed(missing)
    try:
        from models.mochi.loading.load import load  # noqa: PLC0415 (torch takes seconds)
    except ImportError as error:
        raise not_installed(error) from error
    return load(settings, cache_dir, leader)


def build_and_follow(settings: EngineSettings, cache_dir: Path, follower: Follower) -> NoReturn:
    """In another process of a group: build its engine, and work until the process ends.

    Raises:
        EngineUnavailableError: as `build_engine`.
        MochiError: the card has failed.
    """
    from models.mochi.loading.load import load_and_follow  # noqa: PLC0415 (as above)

    load_and_follow(settings, cache_dir, follower)


def build_meter(settings: EngineSettings) -> Meter | None:
    """The meter of the engine's cards; None for an engine on the CPU."""
    if settings.is_mock:
        return None
    from models.cuda import CudaMeter, card  # noqa: PLC0415 (as above)

    return CudaMeter([card(settings.device, rank) for rank in range(settings.gpus_per_video)])


def build_energy_counter(settings: EngineSettings) -> EnergyCounter | None:
    """The energy counter of the engine's cards; None for an engine on the CPU."""
    if settings.is_mock:
        return None
    from models.cuda import CudaEnergy, card  # noqa: PLC0415 (as above)

    return CudaEnergy([card(settings.device, rank) for rank in range(settings.gpus_per_video)])
