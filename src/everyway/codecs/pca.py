"""Linear autoencoders by principal components: fitted in seconds, exact where pictures repeat.

Pictures of few parts (`data.lattice`) lie near a low-dimensional linear space; a codec of that
space has no artefacts and costs one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATTICE = 96
"""Side in pixels of the pictures of the shipped models, whose codecs take any."""


class PCA(nn.Module):
    """Vectors (..., inputs) <-> (..., channels), the main axes of what it was fitted to.

    power: how much of each axis' standard deviation is divided out.  1 whitens; below 1 the axes of
    more variance stay larger, and a mean square over them counts them more.
    """

    def __init__(self, inputs: int, channels: int, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("axes", torch.zeros(channels, inputs))
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take mean, axes and scale from vectors (N, inputs); states then have mean square 1."""
        values = vectors.double()
        mean = values.mean(0)
        spread, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        axes = axes.flip(1).T[: len(self.axes)]  # (channels, inputs), the largest first
        std = spread.flip(0)[: len(axes)].clamp_min(1e-12).sqrt()
        scale = std**self.power
        scale = scale * (std / scale).square().mean().sqrt()
        axes = axes * axes.sum(1, keepdim=True).sign()  # an axis has two directions: this one
        for own, new in ((self.mean, mean), (self.axes, axes), (self.scale, scale)):
            own.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.float()) @ self.axes.float().mT / self.scale.float()

    def inverse(self, z: Tensor) -> Tensor:
        return (z * self.scale.float()) @ self.axes.float() + self.mean.float()


def cells_a_side(settings: Mapping[str, Any]) -> int:
    """How many cells a side pictures have, by the settings of a `CellPCA` or `CellVQ`."""
    return (settings.get("side") or LATTICE) // settings["cell"]


class CellPCA(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, channels, H / cell, W / cell).

    cell: its side in pixels.  channels: numbers of a cell.
    side: to which pictures are resized first, in pixels; 0 takes them as they are.
    power: as of `PCA`; at 0 distances of latents are those of pixels.
    """

    def __init__(
        self, cell: int = 32, channels: int = 192, side: int = 0, power: float = 0.5
    ) -> None:
        super().__init__()
        self.cell, self.side = cell, side
        self.pca = PCA(3 * cell**2, channels, power)

    def cells(self, images: Tensor) -> Tensor:
        """(B, H / cell, W / cell, 3 cell^2)."""
        return F.pixel_unshuffle(self.resized(images), self.cell).movedim(1, -1)

    def resized(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> (B, 3, side, side), or as they are if `side` is 0."""
        if not self.side:
            return images.float()
        return F.interpolate(images.float(), size=(self.side, self.side), mode="area")

    def fit(self, images: Tensor) -> None:
        """To every cell of images (N, 3, H, W)."""
        self.pca.fit(self.cells(images).flatten(0, 2))

    def encode(self, raw: Tensor) -> Tensor:
        return self.pca(self.cells(raw)).movedim(-1, 1)

    def decode(self, state: Tensor) -> Tensor:
        cells = self.pca.inverse(state.float().movedim(1, -1)).movedim(-1, 1)
        return F.pixel_shuffle(cells, self.cell).clamp(-1, 1)


class ThumbnailPCA(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> one whitened vector (B, 1, channels) of their thumbnail.

    side: of the thumbnail in pixels.
    """

    def __init__(self, side: int = 24, channels: int = 64) -> None:
        super().__init__()
        self.side = side
        self.pca = PCA(3 * side**2, channels)

    def thumbnails(self, images: Tensor) -> Tensor:
        """(B, 3 side^2)."""
        return F.interpolate(images.float(), size=(self.side, self.side), mode="area").flatten(1)

    def fit(self, images: Tensor) -> None:
        self.pca.fit(self.thumbnails(images))

    def encode(self, raw: Tensor) -> Tensor:
        return self.pca(self.thumbnails(raw))[:, None]

    def decode(self, state: Tensor) -> Tensor:
        return self.pca.inverse(state.float())[:, 0].unflatten(1, (3, self.side, self.side))
