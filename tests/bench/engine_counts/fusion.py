"""The plan of PyTorch's compiler for an H100, without one: kernels and memory traffic of a module.

The compiler plans with shapes, dtypes and the properties of the card. It needs a GPU only to build
the plan, which does not happen here. The plan is for fixed shapes, while the engine's graphs hold
for all lengths. This uses PyTorch's internals, and is known to work with torch 2.11 and 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from models.mochi.bench.shapes import Request
from models.mochi.network.transformer import Block, Core
from tests.bench.engine_counts.counts import Plan
from tests.bench.engine_counts.tally import OneAttention

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
    gcnArchName="",
)
"""Properties that the compiler reads. Source: CUDA's programming guide, compute capability 9.0."""


def plan_step(core: Core, request: Request) -> Plan:
    """The blocks of one denoising step, both branches, the negative prompt empty."""
    plans = [
        plan_block(block, request.visual_tokens, tokens) * times
        for tokens in (request.tokens, 0)
        for block, times in ((core.blocks[0], len(core.blocks) - 1), (core.blocks[-1], 1))
    ]
    return plans[0] + plans[1] + plans[2] + plans[3]


def plan_block(block: nn.Module, visual_tokens: int, text_tokens: int) -> Plan:
    """One block of `Core` at one branch."""
    assert isinstance(block, Block)
    width, head_dim = block.to_out.out_features, block.norm_q.weight.shape[0]
    text_width = block.text_to_v.in_features
    dtype = block.to_out.weight.dtype
    inputs = (
        torch.empty(1, visual_tokens, width, dtype=dtype, device="meta"),
        torch.empty(1, text_tokens, text_width, dtype=dtype, device="meta"),
        (
            torch.empty(30, 4, width, device="meta"),
            torch.empty(30, 4 if block.updates_text else 1, text_width, device="meta"),
        ),
        torch.empty(1, dtype=torch.int64, device="meta"),
        torch.empty(2, visual_tokens, block.heads, head_dim // 2, device="meta"),
    )
    return plan(block, inputs)


def plan(module: nn.Module, inputs: tuple[Any, ...]) -> Plan:
    """The compiler's plan for `module(*inputs)`, all on `meta`."""
    weights = dict(module.named_parameters())
    leaves, structure = tree_flatten((weights, inputs))

    def run(*leaves: Tensor) -> list[Tensor]:
        weights, inputs = tree_unflatten(leaves, structure)
        with OneAttention():
            return tree_leaves(functional_call(module, weights, inputs))

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake:
        # On the CPU first: a PyTorch without CUDA cannot even index on a CUDA device.
        graph = make_fx(
            functionalize(run, remove="mutations"), decomposition_table=select_decomp_table()
        )(*_on("cpu", leaves))
        _move_to_cuda(graph)
        with _as_on_h100(), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
            return _planned(graph, _on("cuda", leaves), fake)


def _planned(graph: GraphModule, inputs: list[Tensor], fake: FakeTensorMode) -> Plan:
    """The steps of `torch._inductor.compile_fx` up to the schedule."""
    FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*inputs)
    joint_graph_passes(graph)
    view_to_reshape(graph)  # type: ignore[no-untyped-call]
    post_grad_passes(graph, is_inference=True)
    FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*inputs)
    lowering = GraphLowering(graph, example_inputs=inputs, is_inference=True)
    with V.set_graph_handler(lowering):
        lowering.run(*inputs)
        lowering.init_wrapper_code()
        lowering._update_scheduler()
        nodes = [
            node
            for node in lowering.scheduler.nodes
            if not isinstance(node, NopKernelSchedulerNode) and _size(node)
        ]
        externs = [node for node in nodes if isinstance(node, ExternKernelSchedulerNode)]
        kernels = [node for node in nodes if not isinstance(node, ExternKernelSchedulerNode)]
        return Plan(len(kernels), len(externs), sum(map(_size, kernels)), sum(map(_size, externs)))


def _size(node: Any) -> int:
    size: int = node.get_read_write_buffers_sizes()
    return size


def _on(device: str, tensors: list[Tensor]) -> list[Tensor]:
    return [
        torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        for tensor in tensors
    ]


def _move_to_cuda(graph: GraphModule) -> None:
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", torch.device("cuda", 0))
    graph.recompile()


@contextmanager
def _as_on_h100() -> Iterator[None]:
    """Let the compiler find an H100, and Triton to build for it."""

    def answer(value: object) -> Callable[..., object]:
        return staticmethod(lambda *_: value)

    with ExitStack() as stack:
        for owner, name, value in (
            (CudaInterface, "get_device_properties", H100),
            (CudaInterface, "get_compute_capability", 90),
            (CudaInterface.Worker, "get_device_properties", H100),
            (torch.cuda, "get_device_properties", H100),
            (torch.cuda, "get_device_capability", (9, 0)),
            (torch.cuda, "current_device", 0),
        ):
            stack.enter_context(patch.object(owner, name, answer(value)))
        stack.enter_context(patch("torch._inductor.scheduler.has_triton", lambda: True))
        yield
