"""Inpainting: what is known of a generated state stands in its place before and after each step,
and the known pixels stand in theirs at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.contracts import Bundle, Noise, Process


def pinned(
    known: Bundle, free: Bundle, processes: Mapping[str, Process], noise: Noise
) -> Callable[[Bundle, Mapping[str, float]], Bundle]:
    """(states, modality -> its time) -> the states with `known` outside `free`.

    known: modality -> clean state (B, ...).  free: the same names -> bool, broadcast to the state,
    True where it is to be drawn.  Known tokens stand there from the start and are seen as they
    are; a known Gaussian state is corrupted to the time of the rest, always by the same noise.
    Other modalities of the states are left alone.
    """
    draws = {n: processes[n].draw(noise, f"pin:{n}", tuple(x.shape)) for n, x in known.items()}

    def place(states: Bundle, at: Mapping[str, float]) -> Bundle:
        out = dict(states)
        for name, x0 in known.items():
            t = torch.full((len(x0),), at[name], dtype=torch.float64, device=x0.device)
            here = processes[name].known(x0, draws[name].to(x0.device), t)
            out[name] = torch.where(free[name].to(x0.device), states[name], here)
        return out

    return place


def free_places(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A picture's mask (1, H, W) at the places of a state of `shape`, without the batch axis.

    Tokens (L,) are a square grid; a map (C, h, w) has one place a column of channels.  A place is
    free (True) where any of its pixels is.  Raises ValueError for states without places.
    """
    tokens = len(shape) == 1 and isqrt(shape[0]) ** 2 == shape[0]
    if not tokens and len(shape) != 3:
        raise ValueError(f"a state of shape {shape} has no places that a mask could name")
    size = (isqrt(shape[0]),) * 2 if tokens else shape[1:]
    grid = F.adaptive_max_pool2d(mask[None].float(), size)[0] > 0.5  # (1, h, w)
    return grid.flatten() if tokens else grid


def put_back(drawn: Tensor, known: Tensor, free: Tensor, blend: int = 0) -> Tensor:
    """The drawn picture where the mask frees it, the known one bit for bit where it does not.

    drawn, known: (C, H, W).  free: (1, H, W) bool.  blend: how many pixels inside the free places
    the one passes over into the other.
    """
    known, free = known.to(drawn), free.to(drawn.device)
    still = (~free).float()
    weight = free.to(drawn.dtype)
    for _ in range(blend):
        still = F.max_pool2d(still[None], 3, stride=1, padding=1)[0]
        weight = weight + (1 - still)
    return torch.where(free, torch.lerp(known, drawn, weight / (blend + 1)), known)
