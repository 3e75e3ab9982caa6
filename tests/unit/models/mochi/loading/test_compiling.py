from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import register_backend
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.fx import GraphModule

from models.mochi.loading.compiling import compile_blocks, keep_on_disk
from models.mochi.network.adapters import Adapters
from models.mochi.network.transformer import Core
from tests.support.models.tiny_lora import named_lora
from tests.support.models.tiny_mochi import (
    CPU,
    embeddings,
    make_stock,
    noise,
    our_conditions,
    our_loop,
    take_over,
)

ROOT = Path(__file__).parents[5]
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
LENGTHS = (0, 1, 2, 20, 256)
FRAMES = (1, 2, 5)
STEPS = (10, 12, 30)
MOST_GRAPHS = 6

_graphs: list[GraphModule] = []


@register_backend(name="counting")
def _count(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    _graphs.append(graph)
    return graph.forward


@pytest.fixture(autouse=True)
def graphs() -> Iterator[list[GraphModule]]:
    """Those compiled so far in the test."""
    torch._dynamo.reset()
    _graphs.clear()
    yield _graphs
    torch._dynamo.reset()


# Graphs


@pytest.mark.parametrize("streamed", [0, 3])
def test_six_graphs_serve_every_request(graphs: list[GraphModule], streamed: int) -> None:
    conditioner, plain = take_over(make_stock(4))
    _, core = take_over(make_stock(4), streamed=streamed)
    compile_blocks(core.blocks, backend="counting")
    for (number, length), frames, steps in product(enumerate(LENGTHS), FRAMES, STEPS):
        # The prompts are of different lengths, and each length comes in both branches.
        prompts = embeddings(length, LENGTHS[number - 1])
        conditions = our_conditions(conditioner, prompts, steps)
        velocities = core(noise(frames), conditions, steps - 1)
        expected = plain(noise(frames), conditions, steps - 1)
        assert all(map(torch.equal, velocities, expected))
    assert len(graphs) == MOST_GRAPHS


@pytest.mark.parametrize(
    ("steps", "length"),
    [(20, 20), (24, 24)],  # there are 24 visual tokens
)
def test_sizes_that_are_equal_by_chance_are_not_taken_for_one(
    graphs: list[GraphModule], steps: int, length: int
) -> None:
    conditioner, core = take_over(make_stock(2))
    compile_blocks(core.blocks, backend="counting")
    core(noise(), our_conditions(conditioner, embeddings(length, length), steps), 0)
    assert len(graphs) == 2  # of an ordinary block and of the last
    core(noise(3), our_conditions(conditioner, embeddings(11, 13), 12), 0)
    assert len(graphs) == 2


def test_a_whole_request_is_what_it_is_without_compiling(graphs: list[GraphModule]) -> None:
    conditioner, core = take_over(make_stock(3, torch.bfloat16))
    prompts = embeddings(0, 20, dtype=torch.bfloat16)
    conditions = our_conditions(conditioner, prompts, 10)
    expected = our_loop(core, conditions, noise())
    compile_blocks(core.blocks, backend="counting")
    assert torch.equal(our_loop(core, conditions, noise()), expected)
    assert len(graphs) == 4


def test_a_lora_has_graphs_of_its_own_once_whatever_is_chosen() -> None:
    layers = [f"transformer_blocks.{number}.attn1.to_q" for number in range(2)]
    loras = {
        name: named_lora(make_stock(2), layers, rank, seed=rank)
        for name, rank in (("a", 4), ("b", 9))
    }
    conditioner, plain = take_over(make_stock(2))
    core = Core(make_stock(2))
    adapters = Adapters(core, loras)
    core.place(CPU)
    compile_blocks(core.blocks, backend="aot_eager")

    def run(scales: dict[str, float]) -> Tensor:
        adapters.use(scales)
        for length in (0, 1, 20):
            conditions = our_conditions(conditioner, embeddings(length, length), 10)
            velocity: Tensor = core(noise(), conditions, 3)[1]
            if not scales:
                assert torch.equal(velocity, plain(noise(), conditions, 3)[1])
        return velocity

    def compiled() -> int:
        return counters["stats"]["unique_graphs"]

    counters.clear()
    run({})
    assert compiled() == MOST_GRAPHS
    first = run({"a": 1.0})
    assert compiled() == 2 * MOST_GRAPHS
    for scales in ({}, {"b": 0.5}, {"a": 0.1, "b": -1.0}, {}, {"a": 1.0}):
        last = run(scales)
    assert compiled() == 2 * MOST_GRAPHS
    assert torch.equal(last, first)


# On disk


def test_caches_go_below_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that both are reset at the end
        monkeypatch.delenv(name)
    keep_on_disk(tmp_path)
    assert all(tmp_path in Path(os.environ[name]).parents for name in VARIABLES)
    assert len({os.environ[name] for name in VARIABLES}) == 2


def test_torch_s_own_folder_is_not_taken_for_the_user_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # It is in the environment as soon as torch's compiler is imported.
    monkeypatch.setenv(VARIABLES[0], default_cache_dir())
    keep_on_disk(tmp_path)
    assert tmp_path in Path(os.environ[VARIABLES[0]]).parents


def test_folders_that_the_user_names_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"/elsewhere/{name}")
    keep_on_disk(tmp_path)
    assert [os.environ[name] for name in VARIABLES] == [f"/elsewhere/{name}" for name in VARIABLES]


FASTER = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CXXFLAGS": "-O0",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",  # as it would be found by compiling for each kind of CPU
}
"""Variables for the compiler: how fast its code is does not matter here."""

WORKER = """
import json, sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from models.mochi.loading.compiling import compile_blocks, keep_on_disk
from tests.support.models.tiny_mochi import embeddings, error, make_stock, noise, take_over

keep_on_disk(Path(sys.argv[1]))
{run}
print(json.dumps({{
    "error": error(result, expected),
    "compiled": counters["inductor"]["fxgraph_cache_miss"],
    "found": counters["inductor"]["fxgraph_cache_hit"],
}}))
"""
FUNCTION = """
values = torch.linspace(0, 1, 8)
expected = values.exp() + 1
result = torch.compile(lambda x: x.exp() + 1)(values)
"""
BLOCK = """
conditioner, core = take_over(make_stock(2))
conditions = conditioner(embeddings(20), torch.linspace(0, 999, 10))
expected = core(noise(), conditions, 3)[0]
compile_blocks(core.blocks[-1:])  # the smaller of the two kinds
result = core(noise(), conditions, 3)[0]
"""


def start_worker(run: str, folder: Path, temporary: Path) -> dict[str, float]:
    """What a process finds that compiles for its CPU."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", WORKER.format(run=run), str(folder)],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(temporary), **FASTER},
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler for a CPU")
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(FUNCTION, id="function"),
        pytest.param(BLOCK, id="block", marks=pytest.mark.slow),
    ],
)
def test_what_one_process_compiled_the_next_one_finds(tmp_path: Path, run: str) -> None:
    (tmp_path / "tmp").mkdir()
    first = start_worker(run, tmp_path / "cache", tmp_path / "tmp")
    assert (first["compiled"], first["found"]) == (1, 0)
    assert any((tmp_path / "cache" / "inductor").rglob("*.so"))
    shutil.rmtree(tmp_path / "tmp")  # as in a container that is new
    (tmp_path / "tmp").mkdir()
    second = start_worker(run, tmp_path / "cache", tmp_path / "tmp")
    assert (second["compiled"], second["found"]) == (0, 1)
    assert max(first["error"], second["error"]) < 1e-5
