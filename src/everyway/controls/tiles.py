"""Pictures larger than a network is asked for at once: overlapping tiles, one at a time.

At every step each tile's clean estimate is asked for, and where tiles overlap the estimates are
blended; the sampling loop sees one large state, so tiles agree at every step and not only at the
end.

Source: Bar-Tal et al., "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation",
2023, arXiv 2302.08113 (there with equal weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import torch
from torch import Tensor

from everyway.contracts import Bundle, Denoise, Query

Window = tuple[slice, slice]
"""Rows and columns of one tile."""


def windows(height: int, width: int, side: int, overlap: int) -> list[Window]:
    """The tiles of a map, row by row: as few as there can be, evenly spread from edge to edge.

    side: of a tile.  overlap: of neighbours, at least, from 0 to less than `side`.  A map that is
    no larger than a tile is one window of its own size.
    Raises ValueError for an overlap that is none.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"tiles of {side} cannot overlap by {overlap}; give 0 to {side - 1}")
    rows, columns = (_spans(length, side, overlap) for length in (height, width))
    return list(product(rows, columns))


def _spans(length: int, side: int, overlap: int) -> list[slice]:
    if length <= side:
        return [slice(0, length)]
    count = ceil((length - overlap) / (side - overlap))
    starts = [round(k * (length - side) / (count - 1)) for k in range(count)]
    return [slice(start, start + side) for start in starts]


def blended(tiles: Sequence[Tensor], places: Sequence[Window], like: Tensor) -> Tensor:
    """Tiles (B, C, h, w) as one map of the shape of `like` (B, C, H, W).

    A tile counts less towards its edges, linearly over its half, so that no seam is left.
    """
    total, weights = torch.zeros_like(like), like.new_zeros(like.shape[-2:])
    for tile, (rows, columns) in zip(tiles, places, strict=True):
        weight = _ramp(tile.shape[-2], like)[:, None] * _ramp(tile.shape[-1], like)
        total[..., rows, columns] += weight * tile
        weights[rows, columns] += weight
    return total / weights


def _ramp(length: int, like: Tensor) -> Tensor:
    """Rising from the first place to the middle, falling to the last; nowhere 0."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return 1 + torch.minimum(place, length - 1 - place)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiled:
    """A `contracts.Denoise` of maps of any size, by one that is asked for tiles.

    side, overlap: as of `windows`, in places of the states, which are all of one size.
    """

    denoise: Denoise
    side: int
    overlap: int

    def __call__(self, queries: Sequence[Query]) -> list[Bundle]:
        """Clean estimates; a query that is one tile is asked as it is."""
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Bundle:
        height, width = next(iter(query.states.values())).shape[-2:]
        places = windows(height, width, self.side, self.overlap)
        if len(places) == 1:
            return self.denoise([query])[0]
        parts = [self.denoise([_part(query, place)])[0] for place in places]
        states = query.states
        return {k: blended([p[k] for p in parts], places, states[k]) for k in parts[0]}


def _part(query: Query, place: Window) -> Query:
    """What is asked of one tile: its part of the states, and of contexts that are pictures, which
    are as large; all other contexts are the same for every tile."""
    rows, columns = place
    states = {k: x[..., rows, columns].contiguous() for k, x in query.states.items()}
    contexts = {
        k: replace(c, tokens=c.tokens[..., rows, columns].contiguous()) if c.tokens.ndim == 4 else c
        for k, c in query.contexts.items()
    }
    return replace(query, states=states, contexts=contexts)
