"""Image tokens without training: a code for every different cell of pictures of few parts."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from everyway.codecs.image_vq import grid, nearest
from everyway.codecs.pca import CellPCA


class CellVQ(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> tokens (B, L) int64, one a cell, row by row.

    A token is the nearest of `codes` in the latents of a `CellPCA`.
    """

    codes: Tensor

    def __init__(self, codes: int, cell: int = 32, channels: int = 128) -> None:
        super().__init__()
        self.cells = CellPCA(cell, channels)
        self.register_buffer("codes", torch.zeros(codes, channels))

    @property
    def classes(self) -> int:
        """How many different tokens there are."""
        return len(self.codes)

    def fit(self, cells: Tensor) -> None:
        """Take these (codes, 3, cell, cell), in [-1, 1], for the codes, and their main axes."""
        self.cells.fit(cells)
        self.codes.copy_(self.cells.encode(cells).flatten(1))

    def encode(self, raw: Tensor) -> Tensor:
        latents = self.cells.encode(raw).flatten(2).mT  # (B, L, channels)
        return nearest(latents.flatten(0, 1), self.codes).unflatten(0, latents.shape[:2])

    def decode(self, state: Tensor) -> Tensor:
        side = isqrt(state.shape[-1])
        return self.cells.decode(grid(self.codes[state], (side, side)))
