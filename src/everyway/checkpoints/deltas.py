"""A network stored a byte a weight: as its difference from another one, or from nothing.

Matrices are whole numbers times a scale a row; vectors, of which there are few, are stored whole.
Read and written again, a difference has the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, Stored, StoreError, cast, held

SCALE = ":scale"
"""How the name of a difference's scales ends."""
MOST = 127


def differences(entries: Mapping[str, Stored], base: Mapping[str, Stored] | None) -> Entries:
    """What is stored of a network.  base: the other one, as it is in its file; None is nothing."""
    made: Entries = {}
    for name, entry in entries.items():
        made[name] = entry
        if _is_matrix(entry) and (base is None or _shape(base, name) == entry.shape):
            x = entry.read(torch.float32)
            whole, scale = quantised(x if base is None else x - base[name].read(torch.float32))
            made |= {name: held(whole), name + SCALE: held(scale)}
    return made


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers as int8, scale of every row (rows, 1, ...) float32) of x (rows, ...).

    Scales are rounded to 12 bits and the largest number of a row is MOST, so that what is made of
    these again is the same, whatever the last bits of x.
    """
    most = x.abs().flatten(1).amax(1).reshape(-1, *[1] * (x.ndim - 1))
    mantissa, exponent = torch.frexp(most / MOST * (1 + 2.0**-13))
    scale = torch.ldexp(torch.floor(mantissa * 2**12) / 2**12, exponent)
    whole = (x / torch.where(scale > 0, scale, 1.0)).round().clamp(-MOST, MOST)
    return whole.to(torch.int8), scale


def summed(entries: Mapping[str, Stored], base: Mapping[str, Stored] | None) -> Entries:
    """The network again.  Raises StoreError where the other one is of other weights."""
    made: Entries = {}
    for name, entry in entries.items():
        if name.endswith(SCALE):
            continue
        scale = entries.get(name + SCALE)
        if scale and base is not None and _shape(base, name) != entry.shape:
            raise StoreError(f"{name} is a difference from what is not there; copy the model again")
        made[name] = _sum(base and base[name], entry, scale) if scale else entry
    return made


def _sum(base: Stored | None, whole: Stored, scale: Stored) -> Stored:
    def load(dtype: torch.dtype | None) -> Tensor:
        start = base.read(torch.float32) if base else torch.zeros(whole.shape)
        return cast(start.addcmul_(whole.read().float(), scale.read()), dtype)

    return Stored(shape=whole.shape, dtype=torch.float32, load=load)


def _shape(entries: Mapping[str, Stored], name: str) -> tuple[int, ...] | None:
    return entries[name].shape if name in entries else None


def _is_matrix(entry: Stored) -> bool:
    return entry.dtype.is_floating_point and len(entry.shape) > 1
