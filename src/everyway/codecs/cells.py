"""Contexts of small worlds: tokens of another codec, each with its place told beside it.

CLIP's tokens know where they stand; those of a linear codec do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everyway.contracts import Codec, Noise


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedTokens:
    """Raw data -> (B, N, D + N): states of `codec`, (B, D, H, W) or (B, N, D), as tokens of a place
    each, and which place it is.

    gain: of the place, beside numbers of about unit variance.
    """

    codec: Codec
    gain: float = 4.0

    def encode(self, raw: Any) -> Tensor:
        return self.placed(self.codec.encode(raw))

    def decode(self, state: Tensor) -> Any:
        raise NotImplementedError("a context is not decoded")

    def placed(self, states: Tensor) -> Tensor:
        """(B, N, D + N), a map row by row."""
        tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        places = self.gain * torch.eye(tokens.shape[1]).to(tokens)
        return torch.cat([tokens, places.expand(len(tokens), -1, -1)], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedCells(PlacedTokens):
    """Of pictures, whose variations show the same in other places."""

    def varied(self, tokens: Tensor, noise: Noise) -> Tensor:
        """The same cells in an order drawn for each sample."""
        count = tokens.shape[1]
        order = noise.uniform("cells", tuple(tokens.shape[:2])).to(tokens.device).argsort(1)
        cells, places = tokens.split([tokens.shape[2] - count, count], 2)
        return torch.cat([cells.gather(1, order[..., None].expand_as(cells)), places], 2)
