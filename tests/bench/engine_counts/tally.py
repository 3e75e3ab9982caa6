"""Counts the launches, bytes and waits of eager PyTorch on a GPU, without a GPU.

The code runs on the device `meta`, whose tensors have shapes and no numbers, so the full-size model
takes no memory and little time. Each operator passes through here before it runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

Kind = Literal["products", "attention", "element-wise", "rest"]
"""`products` are those of matrices, and convolutions; `rest` are reductions, copies, gathers and
concatenations. What a compiler can fuse is `element-wise` and `rest`."""

KINDS: tuple[Kind, ...] = ("products", "attention", "element-wise", "rest")

META = torch.device("meta")

_aten = torch.ops.aten

_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
}
_FREE = {
    *(_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty),
    *(_aten.new_empty_strided, _aten.detach, _aten.lift_fresh),
    *(_aten._unsafe_view, _aten._reshape_alias, _aten.set_),
}
"""Launch nothing, though their schema does not make them views."""
_GATHERS = {_aten.index, _aten.index_select, _aten.embedding, _aten.gather}
"""Read as much of their first argument as they write."""
_OVERWRITES = {_aten.copy_, _aten.fill_, _aten.zero_, _aten.normal_, _aten.uniform_}
"""Do not read what they change."""
_CASTS = {_aten._to_copy}
"""Element-wise, but not tagged so."""
_NUMBER = _aten._local_scalar_dense.default
_NONZERO = _aten.nonzero.default


@dataclass
class Tally:
    """Counts of some work. An operator reads or writes each of its tensors once.

    Attributes:
        launches: operators of each kind that start a kernel, so no views and no allocations.
        bytes: read and written by them.
        flops: floating-point operations of products and attention.
        syncs: waits of the CPU for the GPU.
        live: bytes of the tensors that exist, including those in `held`.
        peak: the maximum of `live`.
    """

    launches: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    bytes: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    flops: int = 0
    syncs: int = 0
    live: int = 0
    peak: int = 0

    def copy(self) -> Tally:
        return replace(self, launches=dict(self.launches), bytes=dict(self.bytes))

    def __sub__(self, before: Tally) -> Tally:
        """The counts since `before`, with the present memory."""
        return Tally(
            {kind: self.launches[kind] - before.launches[kind] for kind in KINDS},
            {kind: self.bytes[kind] - before.bytes[kind] for kind in KINDS},
            self.flops - before.flops,
            self.syncs - before.syncs,
            self.live,
            self.peak,
        )

    @property
    def all_launches(self) -> int:
        return sum(self.launches.values())

    @property
    def fusible_bytes(self) -> int:
        """Bytes of all operators but products and attention."""
        return self.bytes["element-wise"] + self.bytes["rest"]


@contextmanager
def tallied(
    *, found: Iterable[int] = (), held: Iterable[Tensor] = (), number: float = 0
) -> Iterator[Tally]:
    """Count the work inside on tensors of `meta`, without gradients.

    Args:
        found: how many elements each `nonzero` finds, in the order of the calls.
        held: earlier tensors that count as live; others, such as weights, do not.
        number: the result of a tensor's `item()`.
    """
    mode = _Counting(iter(found), number)
    for tensor in held:
        mode.hold(tensor)
    with torch.no_grad(), OneAttention(), mode:
        yield mode.tally


class OneAttention(TorchFunctionMode):
    """Makes attention a single operator, as on a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **_: object,
) -> Tensor:
    if attn_mask is None:
        out: Tensor = _aten._scaled_dot_product_flash_attention(query, key, value)[0]
    else:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        out = _aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, compute_log_sumexp=False
        )[0]
    return out


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: Iterator[int], number: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = Tally()
        self._found = found
        self._number = number
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in flop_registry:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if _is_big(leaf)]
        for tensor in inputs:
            if tensor.untyped_storage() not in self._known:
                self._known[tensor.untyped_storage()] = 0
        out = self._run(func, args, kwargs, inputs)
        outputs = [leaf for leaf in tree_leaves(out) if _is_big(leaf)]
        if _launches(func, outputs):
            kind, packet = _kind(func), func.overloadpacket
            self.tally.launches[kind] += 1
            self.tally.bytes[kind] += _traffic(packet, inputs, outputs)
            if packet in flop_registry:
                self.tally.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        for tensor in outputs:
            self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of `tensor` as live, until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._free, size)
        self.tally.live += size
        self.tally.peak = max(self.tally.peak, self.tally.live)

    def _free(self, size: int) -> None:
        self.tally.live -= size

    def _run(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        """Run the operator, or return its result where `meta` cannot run it."""
        if not inputs and not _makes_big(func, kwargs):
            return func(*args, **kwargs)
        if func is _NUMBER:
            self.tally.syncs += 1
            return self._number
        if func is _NONZERO:
            self.tally.syncs += 1
            return args[0].new_empty((next(self._found), args[0].dim()), dtype=torch.int64)
        if _waits(func, args, kwargs):
            self.tally.syncs += 1
        if _leaves_device(func, kwargs):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


def _is_big(leaf: object) -> bool:
    """Whether `leaf` is a tensor on the device; those on the CPU are numbers to a kernel."""
    return isinstance(leaf, Tensor) and leaf.device == META


def _makes_big(func: OpOverload, kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") == META or func.overloadpacket is _aten.copy_


def _leaves_device(func: OpOverload, kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return func.overloadpacket in _CASTS and device is not None and device != META


def _waits(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operator is a copy to or from main memory that PyTorch waits for."""
    if func.overloadpacket in _CASTS:
        source, device = args[0].device, kwargs.get("device") or args[0].device
        return source != device and not kwargs.get("non_blocking")
    if func.overloadpacket is _aten.copy_:
        non_blocking = kwargs.get("non_blocking") or any(args[2:3])
        return args[0].device != args[1].device and args[1].dim() > 0 and not non_blocking
    return False


def _launches(func: OpOverload, outputs: list[Tensor]) -> bool:
    if func.is_view or func.overloadpacket in _FREE:
        return False
    return any(tensor.numel() for tensor in outputs)


def _kind(func: OpOverload) -> Kind:
    packet = func.overloadpacket
    if packet in _PRODUCTS:
        return "products"
    if packet in _ATTENTION:
        return "attention"
    if torch.Tag.pointwise in func.tags or packet in _CASTS:
        return "element-wise"
    return "rest"


def _traffic(packet: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    written = sum(map(_size, outputs))
    if packet in _GATHERS:
        return 2 * written + sum(map(_size, inputs[1:]))
    if packet in _OVERWRITES:
        return written + sum(map(_size, inputs[1:]))
    return written + sum(map(_size, inputs))


def _size(tensor: Tensor) -> int:
    """Bytes of the elements; a stride of 0 repeats an element, which counts once."""
    return tensor.element_size() * prod(
        size
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if stride or not size
    )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory that the tensors take, each storage counted once."""
    storages: dict[int, UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
    return sum(storage.nbytes() for storage in storages.values())
