"""Weights in half the bytes: computed with as they are where that is fast, as float32 elsewhere.

A GPU, or a CPU with instructions for it, multiplies in the format of the weights.  Other CPUs
emulate such products, about 80 times slower than float32 ones; there each layer's weights become
float32 while it runs, so that a network keeps its few bytes and costs little more time.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)


def computing(module: nn.Module) -> AbstractContextManager:
    """A context in which `module` takes float32 inputs, whatever its weights are kept in."""
    floats = (p for p in module.parameters() if p.is_floating_point())
    weight = next(floats, None)
    if weight is None or weight.dtype not in HALF:
        return nullcontext()
    if fast(weight.dtype, weight.device.type):
        return torch.autocast(weight.device.type, weight.dtype)
    return Widened()


@lru_cache
def fast(dtype: torch.dtype, device: str) -> bool:
    """Whether products in `dtype` are faster than float32's on this kind of device; on a CPU it is
    measured."""
    if device != "cpu":
        return True
    seconds = {kind: _seconds(kind) for kind in (torch.float32, dtype)}
    return seconds[dtype] < seconds[torch.float32]


def _seconds(dtype: torch.dtype) -> float:
    """Of one product: the least of several, since other work on the machine only adds to them."""
    a = torch.randn(256, 256).to(dtype)
    found = []
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        found.append(time.perf_counter() - began)
    return min(found)


class Widened(TorchFunctionMode):
    """Every function sees tensors of half precision as float32, and answers in float32.

    What asks a tensor for its dtype gets float32 too, so that inputs are cast to that.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":  # an attribute, as .dtype and .shape
            found = func(*args, **kwargs)
            return torch.float32 if isinstance(found, torch.dtype) and found in HALF else found
        if func is F.embedding:  # a few rows of a large table
            return _wide(func(*args, **kwargs))
        return func(*_wide(args), **{name: _wide(value) for name, value in kwargs.items()})


def _wide(value: Any) -> Any:
    """Tensors of half precision as float32, also those in lists and tuples."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if type(value) in (list, tuple):
        return type(value)(_wide(v) for v in value)
    return value
