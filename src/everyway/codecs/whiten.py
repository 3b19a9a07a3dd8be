"""Whitening: latents with mean 0 and variance 1 a channel, as a diffusion wants them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Whiten(nn.Module):
    """(x - shift) / scale along one axis; the identity until `measure` or loaded weights.

    channels: size of the axis.  axis: which one, counted without the batch (0 for (B, C, H, W),
    -1 for (B, L, C)).
    """

    def __init__(self, channels: int, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Take shift and scale from values (N, channels)."""
        self.shift.copy_(values.mean(0))
        self.scale.copy_(values.std(0).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self._along(self.shift, x)) / self._along(self.scale, x)

    def inverse(self, z: Tensor) -> Tensor:
        return z * self._along(self.scale, z) + self._along(self.shift, z)

    def _along(self, v: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.axis + 1 if self.axis >= 0 else self.axis] = -1
        return v.reshape(shape)
