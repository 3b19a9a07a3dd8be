"""One call of a network for a whole batch, in which each sample has the bits that it has alone.

A small network on a CPU spends much of its time on being called, which a batch need do only once.
But a product of few rows is made by another kernel than one of many, and has other last bits.
Which products these are depends on shapes, on where in memory numbers lie, and on the processor,
never on values.  So each is tried once, with random numbers; those that are not batch-invariant
are made sample by sample, everything else whole.  The first call of a network for such a batch is
made sample by sample too, and batches follow only where every bit is the same.
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
"""Function -> how many of its first arguments are of samples; the others are weights."""
CURVES = {F.gelu, F.silu, F.softplus, F.mish, Tensor.sin, Tensor.cos, Tensor.log, Tensor.pow}
CURVES |= {torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, Tensor.__pow__}
"""Functions of each number, made in groups; the last numbers of a tensor, which fill no group, are
made by other code, whose last bit differs now and then: too seldom for a trial."""
GROUP = 64
"""Numbers of a group, at most."""
ALIGNED = 64
"""Bytes at a multiple of which every new tensor begins."""
DRAWN = 1000
"""Numbers that a trial compares, at least."""
LONG = 0.05
"""Seconds of a sample's call above which a batch would save next to nothing, and cost memory."""
_SOUND: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()
"""Network -> what stands for the shapes of a batch -> whether it may be called whole."""


def batch_invariant(network: nn.Module, query: Query) -> Bundle:
    """The raw outputs of a network; those of sample k are bit-equal whatever the batch."""
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
    """The raw outputs of a network that is called with `size` samples at a time."""
    cuts = [slice(k, k + size) for k in range(0, query.batch, size)]
    return joined([_asked(network, _part(query, cut)) for cut in cuts])


def _part(query: Query, cut: slice) -> Query:
    return tree_map_only(Tensor, lambda x: lone(x, cut), query)


def lone(x: Tensor, cut: slice) -> Tensor:
    """Some samples of x, at an address like that of x, as they have when they are alone.

    Kernels make numbers that lie across the borders of ALIGNED bytes in another order.
    """
    own, shift = x[cut], x.data_ptr() % ALIGNED
    if own.data_ptr() % ALIGNED == shift:
        return own
    shift //= x.element_size()
    room = x.new_empty(shift + _extent(own.shape, own.stride()))
    return room.as_strided(own.shape, own.stride(), shift).copy_(own)


class Apart(TorchFunctionMode):
    """Makes those products sample by sample that are not batch-invariant, of `batch` samples."""

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
    """What a kernel is chosen by, and makes numbers in an order by."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    shift: int
    """Bytes by which its address is above a multiple of ALIGNED."""

    @staticmethod
    def of(x: Tensor) -> Look:
        return Look(x.shape, x.stride(), x.dtype, x.data_ptr() % ALIGNED)

    def random(self, generator: torch.Generator) -> Tensor:
        shift = self.shift // self.dtype.itemsize
        numbers = torch.randn(shift + _extent(self.shape, self.stride), generator=generator)
        return numbers.to(self.dtype).as_strided(self.shape, self.stride, shift)


@lru_cache(maxsize=10_000)
def invariant(func: Callable[..., Tensor], looks: Sequence[Any], threads: int) -> bool:
    """Whether a product of tensors that look so has the bits that it has sample by sample.

    looks: its arguments, with a Look in place of each tensor.  threads: that compute.
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
    """All samples (1, ...), the numbers of each in the order in which they lie alone."""
    one = made[0]
    if one.is_contiguous():
        return torch.cat([*made])
    strides = one[0].numel(), *one.stride()[1:]
    whole = one.new_empty_strided((len(made), *one.shape[1:]), strides)
    return torch.cat([*made], out=whole)


def _in_groups(x: Tensor) -> bool:
    """Whether every sample is made of whole groups; several threads cut tensors anywhere."""
    return torch.get_num_threads() == 1 and x.is_contiguous() and x[0].numel() % GROUP == 0


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How far apart the first and the last number lie, and one."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride))


def _asked(network: nn.Module, query: Query) -> Bundle:
    return network(query.states, query.times, query.contexts, keep=query.kept)


def _whole(network: nn.Module, query: Query) -> Bundle:
    with Apart(query.batch):
        return _asked(network, query)


def _same(one: Bundle, other: Bundle) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def _shapes(network: nn.Module, query: Query) -> Hashable:
    """Of all that a network is given, with which parts of it a batch is split among."""
    leaves, tree = tree_flatten(query)
    looks = [(x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves]
    chosen = getattr(network, "chosen", lambda times: ())
    return tree, *looks, *chosen(query.times), torch.get_num_threads()
