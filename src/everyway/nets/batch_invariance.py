"""One call of a network for a whole batch, in which each sample has the bits that it has alone.

A small network on a CPU spends much of its time on the overhead of a call, which a batch has only
once.  But a matrix product of few rows is computed by another kernel than one of many, and may have
other last bits.  Whether it has depends on shapes, on alignment in memory and on the processor,
never on values.  So each product is tried once, with random numbers; those that are not
batch-invariant are computed sample by sample, everything else for the whole batch.  The first call
for a batch of some shapes is also made sample by sample, and later ones for the whole batch only if
every bit was the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

from everyway.contracts import Bundle, Query, joined

PRODUCTS: dict[Callable[..., Tensor], int] = {
    F.linear: 1,
    F.conv2d: 1,
    F.scaled_dot_product_attention: 4,
    torch.matmul: 2,
    Tensor.matmul: 2,
    Tensor.__matmul__: 2,
}
"""Function -> how many of its first arguments may have a batch axis; the others are weights."""
CURVES = {F.gelu, F.silu, F.softplus, F.mish, Tensor.sin, Tensor.cos, Tensor.log, Tensor.pow}
CURVES |= {torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, Tensor.__pow__}
"""Elementwise functions, computed a vector register at a time.  The last numbers of a tensor, which
do not fill one, are computed by other code, whose last bit differs too seldom for a trial."""
GROUP = 64
"""A multiple of the numbers that fill a vector register, on every processor."""
ALIGNED = 64
"""Every new tensor begins at a multiple of so many bytes."""
DRAWN = 1000
"""How many numbers a trial compares, at least."""
LONG = 0.05
"""If a sample's call takes more seconds, a batch would save next to nothing, and cost memory."""
_SOUND: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()
"""Network -> `_shapes` of a batch -> whether one call for such a batch has the right bits."""


def batch_invariant(network: nn.Module, query: Query) -> Bundle:
    """The raw outputs of a network for a query of B samples; the bits of each are those that it has
    alone."""
    if query.batch == 1:
        return _asked(network, query)
    sound, shapes = _SOUND.setdefault(network, {}), _shapes(network, query)
    if sound.get(shapes):
        return _whole(network, query)
    began = time.thread_time()
    alone = by_rows(network, query, 1)
    if shapes not in sound:
        short = time.thread_time() - began < LONG * query.batch
        sound[shapes] = short and _same(_whole(network, query), alone)
    return alone


def by_rows(network: nn.Module, query: Query, size: int) -> Bundle:
    """The raw outputs of a network for a query, called with `size` samples at a time."""
    cuts = [slice(k, k + size) for k in range(0, query.batch, size)]
    return joined([_asked(network, _part(query, cut)) for cut in cuts])


def _part(query: Query, cut: slice) -> Query:
    return tree_map_only(Tensor, lambda x: lone(x, cut), query)


def lone(x: Tensor, cut: slice) -> Tensor:
    """Samples `cut` of x (B, ...), aligned in memory as x is, and as they are when alone.

    Kernels sum in another order where numbers are aligned otherwise.
    """
    own, shift = x[cut], x.data_ptr() % ALIGNED
    if own.data_ptr() % ALIGNED == shift:
        return own
    shift //= x.element_size()
    room = x.new_empty(shift + _extent(own.shape, own.stride()))
    return room.as_strided(own.shape, own.stride(), shift).copy_(own)


class Apart(TorchFunctionMode):
    """A mode in which products and elementwise functions of `batch` samples that are not
    batch-invariant are computed sample by sample."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        own = args and isinstance(args[0], Tensor) and args[0].shape[:1] == (self.batch,)
        if own and func in CURVES and not _in_groups(args[0]):
            return _by_sample(func, args, **(kwargs or {}))
        if own and func in PRODUCTS and not kwargs:
            looks = tuple(Look.of(x) if isinstance(x, Tensor) else x for x in args)
            if not invariant(func, looks, torch.get_num_threads()):
                return _by_sample(func, args)
        return func(*args, **(kwargs or {}))


class Look(NamedTuple):
    """What decides by which kernel, and in which order, a tensor is summed."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    shift: int
    """Bytes from the last multiple of ALIGNED to its address."""

    @staticmethod
    def of(x: Tensor) -> Look:
        return Look(x.shape, x.stride(), x.dtype, x.data_ptr() % ALIGNED)

    def random(self, generator: torch.Generator) -> Tensor:
        """A tensor that looks so, of standard normal numbers."""
        shift = self.shift // self.dtype.itemsize
        numbers = torch.randn(shift + _extent(self.shape, self.stride), generator=generator)
        return numbers.to(self.dtype).as_strided(self.shape, self.stride, shift)


@lru_cache(maxsize=10_000)
def invariant(func: Callable[..., Tensor], looks: Sequence[Any], threads: int) -> bool:
    """Whether a product has for a whole batch the bits that it has sample by sample.

    looks: its arguments, with a Look in place of each tensor.  threads: how many compute, on which
    the answer depends.
    """
    generator, compared = torch.Generator().manual_seed(0), 0
    while compared < DRAWN:
        args = [x.random(generator) if isinstance(x, Look) else x for x in looks]
        whole = func(*args)
        if not torch.equal(whole, _by_sample(func, args)):
            return False
        compared += whole.numel()
    return True


def _by_sample(func: Callable[..., Tensor], args: Sequence[Any], **settings: Any) -> Tensor:
    batch, count = len(args[0]), PRODUCTS.get(func, 1)
    own = [isinstance(x, Tensor) and len(x) == batch for x in args[:count]]
    made = []
    for k in range(batch):
        here = slice(k, k + 1)
        cut = [lone(x, here) if of_samples else x for x, of_samples in zip(args, own)]
        made.append(func(*cut, *args[count:], **settings))
    return _joined(made)


def _joined(made: Sequence[Tensor]) -> Tensor:
    """Samples, each (1, ...), as a batch whose strides within a sample are those of one alone."""
    one = made[0]
    if one.is_contiguous():
        return torch.cat([*made])
    strides = one[0].numel(), *one.stride()[1:]
    whole = one.new_empty_strided((len(made), *one.shape[1:]), strides)
    return torch.cat([*made], out=whole)


def _in_groups(x: Tensor) -> bool:
    """Whether every sample is made of whole groups.  Never with several threads, which divide
    tensors anywhere."""
    return torch.get_num_threads() == 1 and x.is_contiguous() and x[0].numel() % GROUP == 0


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many numbers a tensor spans in memory, from its first to its last."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride))


def _asked(network: nn.Module, query: Query) -> Bundle:
    return network(query.states, query.times, query.contexts, keep=query.kept)


def _whole(network: nn.Module, query: Query) -> Bundle:
    with Apart(query.batch):
        return _asked(network, query)


def _same(one: Bundle, other: Bundle) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def _shapes(network: nn.Module, query: Query) -> Hashable:
    """What decides whether a batch may be one call: shapes and dtypes of all that the network is
    given, which experts it chooses, and the number of threads."""
    leaves, tree = tree_flatten(query)
    looks = [(x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves]
    chosen = getattr(network, "chosen", lambda times: ())
    return tree, *looks, *chosen(query.times), torch.get_num_threads()
