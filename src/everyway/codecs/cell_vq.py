"""Image tokens without training: a code for every different cell of pictures of few parts, or the
mean of each cluster of cells."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from everyway.codecs.image_vq import MovingCodes, grid, nearest, rows
from everyway.codecs.pca import CellPCA

ROUNDS, SEED = 12, 21
"""Rounds of k-means, and the seed of its first means."""
CLUSTERED = 50
"""How many cells are clustered for each picture, on average."""


class CellVQ(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> tokens (B, L) int64, one a cell, row by row.

    A token is the number of the nearest of the `codes`, which are latents of a `CellPCA`.

    codes: how many.  cell, channels, side, power: as of `CellPCA`.
    """

    codes: Tensor

    def __init__(
        self, codes: int, cell: int = 32, channels: int = 128, side: int = 0, power: float = 0.5
    ) -> None:
        super().__init__()
        self.cells = CellPCA(cell, channels, side, power)
        self.register_buffer("codes", torch.zeros(codes, channels))

    @property
    def classes(self) -> int:
        """How many different tokens there are."""
        return len(self.codes)

    def fit(self, cells: Tensor) -> None:
        """Take these (codes, 3, cell, cell), in [-1, 1], for the codes, and their main axes."""
        self.cells.fit(cells)
        self.codes.copy_(self.cells.encode(cells).flatten(1))

    @torch.no_grad()
    def cluster(self, pictures: Tensor) -> None:
        """Takes the principal components of the cells of pictures (N, 3, H, W), and as codes the
        means of their clusters by k-means, which is `MovingCodes` without a memory."""
        generator = torch.Generator().manual_seed(SEED)
        self.cells.fit(pictures)
        latents = rows(self.cells.encode(pictures))
        latents = latents[torch.randperm(len(latents), generator=generator)]
        latents = latents[: CLUSTERED * len(pictures)]
        means = MovingCodes(*self.codes.shape, decay=0.0)
        means.codes.copy_(latents[torch.arange(self.classes) % len(latents)])
        for _ in range(ROUNDS):
            means.learn(latents, generator)
        self.codes.copy_(means.codes)

    def encode(self, raw: Tensor) -> Tensor:
        latents = self.cells.encode(raw)
        return nearest(rows(latents), self.codes).unflatten(0, (len(latents), -1))

    def decode(self, state: Tensor) -> Tensor:
        side = isqrt(state.shape[-1])
        return self.cells.decode(grid(self.codes[state], (side, side)))
