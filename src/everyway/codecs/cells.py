"""Contexts of small worlds: tokens of another codec, each with its place told beside it.

CLIP's tokens know where they stand; those of a linear codec do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.contracts import Noise


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedTokens:
    """Raw data -> (B, N, D + N): states of `codec`, (B, D, H, W) or (B, N, D), as tokens of a place
    each, and which place it is.

    gain: of the place, beside numbers of about unit variance.
    """

    codec: Any
    gain: float = 4.0

    def encode(self, raw: Any) -> Tensor:
        return self.placed(self.codec.encode(raw))

    def placed(self, states: Tensor) -> Tensor:
        """(B, N, D + N), a map row by row."""
        tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        places = self.gain * torch.eye(tokens.shape[1]).to(tokens)
        return torch.cat([tokens, places.expand(len(tokens), -1, -1)], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedCells(PlacedTokens):
    """Of pictures, whose variations show the same in other places.

    hidden: share of the cells that are hidden from every fourth variation in training, so that a
    masked cell is nothing new.
    """

    hidden: float = 0.25

    def encode(self, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, H, W) in [0, 1], how much of each pixel of raw (B, 3, H, W) is seen; a cell
        counts as much as is seen of it."""
        tokens = super().encode(raw.to(next(self.codec.buffers()).device))
        if mask is None:
            return tokens
        side = math.isqrt(tokens.shape[1])
        return tokens * F.interpolate(mask, (side, side), mode="area").flatten(1)[..., None]

    def varied(self, tokens: Tensor, noise: Noise) -> Tensor:
        """The same cells in an order drawn for each sample, some of them hidden."""
        (batch, count), device = tokens.shape[:2], tokens.device
        order = noise.uniform("cells", (batch, count)).to(device).argsort(1)
        cells, places = tokens.split([tokens.shape[2] - count, count], 2)
        moved = torch.cat([cells.gather(1, order[..., None].expand_as(cells)), places], 2)
        share = self.hidden * (noise.uniform("hides", (batch, 1)).to(device) < 0.25)
        return moved * (noise.uniform("hidden", (batch, count)).to(device) >= share)[..., None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedWords(PlacedTokens):
    """Of texts, by a `TokenTable`; the empty text is no words, a null."""

    def encode(self, raw: Sequence[str]) -> Tensor:
        """Raises PromptError for texts that cannot be read."""
        table = self.codec
        ids = [self.ids([text]) if text.strip() else table.tokens.nothing(1) for text in raw]
        return self.placed(table.latent(torch.cat(ids)))

    def ids(self, raw: Sequence[str]) -> Tensor:
        """(B, N) int64; raises as `encode` does."""
        return self.codec.ids(raw)
