"""Settings to a loaded engine: real, dummy or mock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import diffusers
import structlog
import torch
import transformers
from safetensors import SafetensorError
from transformers import T5EncoderModel

from models.cuda import GIB
from models.engine import Engine, Traits
from models.errors import EngineBrokenError, EngineUnavailableError
from models.group import Follower, Leader, Member
from models.mochi.engine import MochiEngine
from models.mochi.group import GroupEngine, follow
from models.mochi.loading import lora
from models.mochi.loading.assemble import CPU, Options, assemble
from models.mochi.loading.plan import LoadPlan, plan_loading, ranks_of
from models.mochi.memory import main_memory
from models.mochi.memory.profiles import PROFILES, TEXT
from models.mochi.network.adapters import NamedLora
from models.mochi.network.attention import choose_kernel
from models.mochi.network.ranks import ALONE, Ranks
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic import mock
from models.mochi.synthetic.dummy import make_dummy
from models.request.catalogue import MOCHI, Model, NoiseSchedule
from models.request.params import HEIGHT, MOST_FRAMES, TEMPORAL_FACTOR, WIDTH, GenerateParams
from models.settings import EngineSettings

_log = structlog.get_logger()


def load(settings: EngineSettings, cache_dir: Path, leader: Leader | None = None) -> Engine:
    """Load Mochi.

    Args:
        settings: which weights, and where and how real ones run. Mock weights run on the CPU, in
            float32 and not compiled.
        cache_dir: of mock and pulled weights and compiled code; made if missing.
        leader: of the group of cards that share each video; None for a single card.

    Raises:
        EngineUnavailableError: the engine cannot run here, and another start does not help; the
            text says what to do.
        EngineBrokenError: a card or the exchange of a group has failed; another start may help.
    """
    silence_libraries()
    if settings.is_mock:
        engines = {
            model.slug: _lead(_load_mock(settings, cache_dir, leader, model), leader)
            for model in settings.served
        }
        return mock.MockEngine(engines)
    plan = _plan(settings, cache_dir, leader)
    engine = _lead(_assemble_in_turn(plan, settings, cache_dir), leader)
    _warm_up(engine, plan)
    return engine


def load_and_follow(settings: EngineSettings, cache_dir: Path, follower: Follower) -> NoReturn:
    """Load Mochi in another process of a group, and work until that process ends.

    Raises:
        EngineUnavailableError: as `load`.
        MochiError: this card has failed; the process must end.
    """
    silence_libraries()
    (model,) = settings.served
    if settings.is_mock:
        engine = _load_mock(settings, cache_dir, follower, model)
    else:
        plan = _plan(settings, cache_dir, follower)
        engine = _assemble_in_turn(plan, settings, cache_dir)
    follow(engine, follower)


def _lead(engine: MochiEngine, leader: Leader | None) -> Engine:
    return engine if leader is None else GroupEngine(engine, leader)


def _plan(settings: EngineSettings, cache_dir: Path, member: Member | None) -> LoadPlan:
    plan = plan_loading(settings, cache_dir, cache_dir / "compiled", member=member)
    memory = plan.memory
    _log.info(
        "engine.profile",
        profile=memory.profile.name,
        precision=memory.precision,
        reason=memory.reason,
    )
    _log.info("engine.reading", folder=str(plan.folder or "none: random numbers are drawn"))
    return plan


def silence_libraries() -> None:
    """Keep progress bars, and warnings that quote prompts, out of the worker's log.

    Errors go through the worker's own log, which names their request.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _load_mock(
    settings: EngineSettings, cache_dir: Path, member: Member | None, model: Model
) -> MochiEngine:
    try:
        folder = mock.write_mock_checkpoint(cache_dir, model)
    except (OSError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The mock weights cannot be written to {cache_dir}: {error}"
        ) from error
    if settings.gpus_per_video > mock.MOST_CARDS:
        raise EngineUnavailableError(
            f"Mock weights have too few heads for MOCHI_GPUS_PER_VIDEO={settings.gpus_per_video}: "
            f"at most {mock.MOST_CARDS} processes can share a video."
        )
    ranks = ranks_of(member, CPU)
    parts = read_weights(folder, Dtypes(), has_text=ranks.encodes)
    loras = _mock_loras(settings, parts)
    return assemble_mock(parts, settings.step_cache, ranks, model.schedule, loras)


def _mock_loras(settings: EngineSettings, parts: Parts) -> dict[str, NamedLora]:
    """Those of files, and random ones for names without a file."""
    named = settings.named_loras
    loras = lora.read_named({name: path for name, path in named.items() if path})
    lora.check_named(parts.transformer, loras)
    return {name: loras.get(name) or lora.random_lora(name, parts.transformer) for name in named}


def assemble_mock(
    parts: Parts,
    step_cache: float,
    ranks: Ranks = ALONE,
    noise: NoiseSchedule = MOCHI.schedule,
    loras: Mapping[str, NamedLora] = MappingProxyType({}),
) -> MochiEngine:
    """Assemble the mock checkpoint's parts on the CPU; the frames are small and have no caption."""
    # With so little work, threads cost more than they bring: up to ten times as much where other
    # processes want the same cores.
    torch.set_num_threads(1)
    options = Options(PROFILES["80gb"], choose_kernel("auto", CPU), step_cache=step_cache)
    traits = Traits("mock weights", "CPU", "float32", lossy=options.lossy, is_mock=True)
    size = (mock.WIDTH, mock.HEIGHT)
    return assemble(parts, options, traits, CPU, size, ranks=ranks, noise=noise, loras=loras)


def make_parts(plan: LoadPlan) -> Parts:
    """Read the weights, or draw random ones, and fuse the LoRAs."""
    if plan.folder is None:
        parts = make_dummy(plan.dtypes, plan.device, has_text=plan.ranks.encodes)
    else:
        parts = read_weights(plan.folder, plan.dtypes, has_text=plan.ranks.encodes)
    lora.fuse(parts.transformer, plan.loras)
    lora.check_named(parts.transformer, plan.named_loras)
    return parts


def read_weights(folder: Path, dtypes: Dtypes, *, has_text: bool = True) -> Parts:
    """As `Parts.read`, into main memory; T5 when it is asked for.

    Raises:
        EngineUnavailableError: a file is missing or damaged; the text says what to do.
    """
    with _damage_reported(folder):
        parts = Parts.read(folder, dtypes, has_text=has_text)
    read = parts.read_text_encoder

    def read_text_encoder() -> T5EncoderModel:
        with _damage_reported(folder):
            return read()

    return replace(parts, read_text_encoder=read_text_encoder)


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The weights in {folder} cannot be loaded: {error}\n"
            "`mochi-server weights verify` finds damaged files, `mochi-server weights pull` "
            "fetches them again."
        ) from error


def _assemble_in_turn(plan: LoadPlan, settings: EngineSettings, data_dir: Path) -> MochiEngine:
    """Assemble while no other worker of this data folder does, as loading takes the most memory."""
    text = TEXT["reference" if plan.dtypes.text == torch.float32 else "bf16"]
    needed = main_memory.needed_gib(
        plan.memory.profile,
        text if plan.ranks.encodes else 0.0,
        reads_all_first=plan.folder is None,
    )
    with main_memory.one_at_a_time(data_dir / "loading.lock"):
        main_memory.check(needed, insists=settings.profile != "auto")
        return _assemble(plan, settings.served[0].schedule)


def _assemble(plan: LoadPlan, noise: NoiseSchedule) -> MochiEngine:
    profile = plan.memory.profile.name
    try:
        return assemble(
            make_parts(plan),
            plan.options,
            plan.traits,
            plan.device,
            (WIDTH, HEIGHT),
            weights_stamp=plan.weights_stamp,
            ranks=plan.ranks,
            noise=noise,
            loras=plan.named_loras,
        )
    except torch.OutOfMemoryError as error:
        free, total = (size / GIB for size in torch.cuda.mem_get_info(plan.device))
        raise EngineUnavailableError(
            f"The weights do not fit on {plan.device} with the profile {profile}: {free:.1f} of "
            f"its {total:.1f} GiB are left. Choose a smaller profile with MOCHI_PROFILE, or "
            "another card with MOCHI_DEVICE=cuda:N."
        ) from error
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"The weights cannot be moved into place: {error}\nIs main memory too small, or the "
            f"share of it that may be pinned (ulimit -l)? The profile {profile} keeps some weights "
            "there; 80gb keeps none."
        ) from error


def _warm_up(engine: Engine, plan: LoadPlan) -> None:
    """Run everything once, so that no request waits for compilers and first launches."""
    if plan.options.compiles:
        _log.info("engine.compiling", hint="minutes the first time, less at later starts")
    try:
        chunk, cards = plan.memory.profile.chunk, plan.ranks.cards
        for params in warm_up_requests(chunk, cards, next(iter(plan.named_loras), "")):
            for _ in engine.generate(params, lambda _step, _steps: None).frames:
                pass
    except EngineBrokenError:
        raise  # another start may help
    except Exception as error:
        _log.exception("engine.unfit")
        raise EngineUnavailableError(
            f"The engine does not run on {plan.traits.device}: {error}\nThe log has the traceback. "
            "Type --no-compile if compiling failed, --attention flash if attention did, or a "
            f"smaller --profile than {plan.memory.profile.name} if the memory did not suffice."
        ) from error


def warm_up_requests(chunk: int, cards: int = 1, lora: str = "") -> list[GenerateParams]:
    """Requests that together compile every graph.

    There is a graph for each length of a clip's first chunk, and for texts of no token, of one, and
    of more. A card of a group sees one text of the two.

    Args:
        chunk: latent frames that a card decodes at a time.
        cards: that share each video.
        lora: one that requests may name; blocks have graphs of their own with it.
    """
    longer = "A red panda drinks tea"
    negative_prompts = ("", " ", longer) if cards > 1 else ("", " ")
    without = [
        GenerateParams(
            prompt=longer,
            negative_prompt=negative_prompt,
            frames=min(TEMPORAL_FACTOR * (cards * chunks - 1) + 1, MOST_FRAMES),
            steps=10,
        )
        for chunks in range(chunk + 1, 2 * chunk + 1)
        for negative_prompt in negative_prompts
    ]
    shortest = without[: len(negative_prompts)] if lora else []
    return without + [each.model_copy(update={"lora": {lora: 1.0}}) for each in shortest]
