"""What is checked before weights are read: devices, weights, LoRAs, a compiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from models.build import build_engine
from models.engine import Traits
from models.errors import EngineBrokenError, EngineUnavailableError
from models.group import Leader, Member
from models.mochi.loading.assemble import CPU, Options
from models.mochi.loading.plan import LoadPlan, plan_loading
from models.mochi.memory.profiles import Precision, ProfileName, plan_memory
from models.mochi.network.ranks import Ranks
from models.mochi.parts import Dtypes
from models.settings import EngineSettings

REVISION = "0123456789abcdef0123456789abcdef01234567"


def refusal(tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(EngineUnavailableError) as error:
        build_engine(EngineSettings(**settings), tmp_path)
    return str(error.value)


NO_GPU = "There is no CUDA device here"
NO_WEIGHTS = "mochi-server weights pull"
TRY_MOCK = "mochi-server up --mock"


def test_without_gpu_and_weights_both_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    message = refusal(tmp_path)
    assert NO_GPU in message
    assert NO_WEIGHTS in message
    assert TRY_MOCK in message


def test_with_weights_only_the_missing_gpu_is_named(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    for weights in (str(copy), "dummy"):
        message = refusal(tmp_path, weights=weights)
        assert NO_GPU in message
        assert TRY_MOCK in message
        assert NO_WEIGHTS not in message
        assert "MOCHI_WEIGHTS" not in message


def test_with_a_gpu_only_the_missing_weights_are_named(
    tmp_path: Path, gpus: Callable[[int], None]
) -> None:
    gpus(1)
    message = refusal(tmp_path, revision=REVISION)
    assert NO_GPU not in message
    assert NO_WEIGHTS in message
    assert REVISION in message


def test_a_device_that_cuda_cannot_use_is_no_bug(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: torch.device) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    gpus(1)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    message = refusal(tmp_path, weights="dummy", compile=False)
    assert "cuda cannot be used: The NVIDIA driver on your system is too old" in message


def test_a_group_whose_members_do_not_meet_is_started_anew_and_told_where_to_look(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    monkeypatch.setattr("models.mochi.loading.plan._open_card", lambda *_: (CPU, "a card"))
    monkeypatch.setattr("models.mochi.loading.plan._free_gib", lambda *_: 80.0)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    settings = EngineSettings(weights="dummy", compile=False, gpus_per_video=2)
    no_file = tmp_path
    with pytest.raises(EngineBrokenError) as error:
        plan_loading(settings, tmp_path, tmp_path / "compiled", member=Member(0, 2, no_file))
    assert "NCCL needs room in /dev/shm" in str(error.value)
    assert "NCCL_DEBUG=WARN" in str(error.value)


def test_processes_on_mock_weights_that_do_not_meet_are_told_alike(tmp_path: Path) -> None:
    settings = EngineSettings(mock=True, gpus_per_video=2)
    no_file = tmp_path
    with pytest.raises(EngineBrokenError, match="NCCL_DEBUG=WARN"):
        build_engine(settings, tmp_path, Leader(no_file, [], print, print))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, tuple[int, int] | None], None]:
    """Sets the CUDA that torch is built for, and that of the driver."""

    def set_both(built_for: str | None, version: tuple[int, int] | None) -> None:
        monkeypatch.setattr(torch.version, "cuda", built_for)
        monkeypatch.setattr("models.mochi.loading.preflight.driver_cuda", lambda: version)

    return set_both


@pytest.mark.parametrize("count", [0, 1])  # an old driver can hide the cards
@pytest.mark.parametrize(
    ("built_for", "version", "needed"),
    [
        ("13.0", (12, 4), "the driver 580 or later"),
        ("12.6", (11, 8), "the driver 525 or later"),
        ("14.1", (13, 0), "a newer driver"),
    ],
)
def test_a_driver_that_is_too_old_is_named_before_torch_does(
    tmp_path: Path,
    gpus: Callable[[int], None],
    driver: Callable[..., None],
    count: int,
    *,
    built_for: str,
    version: tuple[int, int],
    needed: str,
) -> None:
    gpus(count)
    driver(built_for, version)
    message = refusal(tmp_path, weights="dummy", compile=False)
    assert f"The NVIDIA driver here works up to CUDA {version[0]}.{version[1]}" in message
    assert f"built for CUDA {built_for}, which needs {needed}. Update the driver" in message
    assert NO_GPU not in message


@pytest.mark.parametrize(
    ("built_for", "version"), [("13.2", (13, 0)), ("12.8", (13, 0)), ("13.0", None), (None, None)]
)
def test_a_driver_of_the_same_or_a_later_major_version_will_do(
    tmp_path: Path,
    gpus: Callable[[int], None],
    driver: Callable[..., None],
    built_for: str | None,
    version: tuple[int, int] | None,
) -> None:
    gpus(0)
    driver(built_for, version)
    message = refusal(tmp_path, weights="dummy", compile=False)
    assert NO_GPU in message
    assert "driver here" not in message


def test_a_missing_compiler_is_named_unless_nothing_is_compiled(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "apt install gcc python3-dev" in refusal(tmp_path)
    assert "gcc" not in refusal(tmp_path, compile=False)


def test_loras_that_are_not_there_are_named_before_anything_is_read(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None]
) -> None:
    gpus(1)
    message = refusal(tmp_path, weights=str(copy), lora="/no/such.safetensors")
    assert "There is no file /no/such.safetensors, which MOCHI_LORA names." in message
    assert "'nonsense', which is not a LoRA" in refusal(
        tmp_path, weights=str(copy), lora="nonsense"
    )


def test_a_device_that_does_not_exist_is_named(tmp_path: Path, gpus: Callable[[int], None]) -> None:
    gpus(2)
    message = refusal(tmp_path, device="cuda:2", revision=REVISION)
    assert "MOCHI_DEVICE=cuda:2 does not exist: the last one here is cuda:1." in message


@pytest.mark.parametrize("weights", ["/no/such/folder", "./weights", "../weights", "weights"])
def test_a_folder_that_does_not_exist_is_not_taken_for_a_hub_id(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    gpus(1)
    monkeypatch.chdir(tmp_path)
    assert f"There is no folder MOCHI_WEIGHTS={weights}." in refusal(tmp_path, weights=weights)


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "transformer"])
def test_a_folder_that_lacks_a_part_is_refused_by_the_parts_name(
    tmp_path: Path, copy: Path, gpus: Callable[[int], None], part: str
) -> None:
    gpus(1)
    (copy / part).rename(tmp_path / "elsewhere")
    assert f"MOCHI_WEIGHTS={copy} lacks {part}:" in refusal(tmp_path, weights=str(copy))


@pytest.mark.parametrize(
    ("profile", "precision", "has_bfloat16", "expected"),
    [
        ("80gb", "reference", True, torch.float32),
        ("80gb", "bf16", False, torch.bfloat16),
        ("24gb", "reference", True, torch.float32),
        ("24gb", "bf16", True, torch.bfloat16),
        ("24gb", "bf16", False, torch.float32),
    ],
)
def test_t5_on_a_cpu_is_bfloat16_where_the_precision_allows_and_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
    profile: ProfileName,
    precision: Precision,
    has_bfloat16: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    chosen = plan_memory(80, profile, precision)
    options = Options(chosen.profile, "flash")
    load_plan = LoadPlan(CPU, chosen, options, Traits("", "", precision), None, [])
    assert load_plan.dtypes == Dtypes(expected, torch.bfloat16, torch.bfloat16)


class Cards:
    """Two cards that this machine seems to have, and the ones that were made current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch.setattr
        self.chosen: list[torch.device] = []
        self._patch(torch.cuda, "set_device", self.chosen.append)
        self._patch(torch.cuda, "get_device_name", lambda _: "a card")
        self._patch(torch.cuda, "get_device_capability", lambda _: (9, 0))
        self._patch("models.mochi.network.attention._runs", lambda *_: True)

    def have(self, free: float, total: float) -> None:
        """Set the GiB of each."""
        sizes = (int(free * 2**30), int(total * 2**30))
        self._patch(torch.cuda, "mem_get_info", lambda _: sizes)


@pytest.fixture
def cards(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> Cards:
    gpus(2)
    for name in ("PYTORCH_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "/elsewhere")
        monkeypatch.delenv(name)
    return Cards(monkeypatch)


def test_a_named_card_has_an_index_and_settings_reach_the_engine(
    tmp_path: Path, cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.have(40, 48)
    for device, index in (("cuda", 0), ("cuda:1", 1)):
        settings = EngineSettings(weights="dummy", device=device, step_cache=0.1, compile=False)
        load_plan = plan_loading(settings, tmp_path, tmp_path / "compiled")
        assert cards.chosen[-1] == load_plan.device == torch.device("cuda", index)
        assert str(load_plan.traits) == (
            "dummy weights, a card, reference, 48gb, lossy: step cache 0.1"
        )
        assert load_plan.options.kernel == "cudnn"
    cards.have(30, 80)
    with capture_logs() as logs:
        assert plan_loading(settings, tmp_path, tmp_path).memory.profile.name == "24gb"
    (warning,) = logs
    assert warning["event"] == "engine.card_is_shared"
    names = ("taken_gib", "profile", "profile_alone")
    assert [warning[name] for name in names] == [49.5, "24gb", "80gb"]
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path / "compiled" / "cudnn"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "a card is too old" in refusal(tmp_path, weights="dummy", compile=False)


@pytest.mark.parametrize("differs", ["get_device_name", "get_device_capability"])
def test_a_group_of_different_cards_is_refused(
    tmp_path: Path, cards: Cards, monkeypatch: pytest.MonkeyPatch, differs: str
) -> None:
    cards.have(80, 80)
    values = {"get_device_name": ("H100", "L4"), "get_device_capability": ((9, 0), (8, 9))}
    monkeypatch.setattr(torch.cuda, differs, lambda each: values[differs][each.index])
    message = refusal(tmp_path, weights="dummy", compile=False, gpus_per_video=2)
    assert "MOCHI_GPUS_PER_VIDEO=2 needs GPUs of one kind" in message
    assert "CUDA_VISIBLE_DEVICES" in message


@pytest.mark.parametrize(
    ("own", "least", "profile", "taken"),
    [
        (79.2, 30.0, "24gb", []),  # another card of the group is shared
        (30.0, 30.0, "24gb", [49.5]),
        (79.2, 79.2, "80gb", []),
    ],
)
def test_a_group_plans_for_its_fullest_card_and_warns_of_that_card_alone(
    tmp_path: Path,
    cards: Cards,
    monkeypatch: pytest.MonkeyPatch,
    *,
    own: float,
    least: float,
    profile: str,
    taken: list[float],
) -> None:
    class Fullest(Ranks):
        def least(self, value: float) -> float:
            return min(value, least)

    def join(_: Member, __: torch.device) -> Ranks:
        cards.have(own - 20, 80)  # NCCL's memory is none of other processes
        return Fullest()

    cards.have(own, 80)
    monkeypatch.setattr("models.mochi.loading.plan.ranks_of", join)
    settings = EngineSettings(weights="dummy", compile=False, gpus_per_video=2)
    with capture_logs() as logs:
        plan = plan_loading(
            settings, tmp_path, tmp_path, member=Member(0, 2, tmp_path / "rendezvous")
        )
    assert plan.memory.profile.name == profile
    assert plan.memory.peak_gib == plan.memory.profile.gib("reference", group=True)
    assert [each["taken_gib"] for each in logs] == taken
