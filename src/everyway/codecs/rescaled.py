"""An autoencoder whose latents a network was trained on at another scale than it came with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyway.codecs.image_vae import ImageVAE


class RescaledVAE(ImageVAE):
    """An ImageVAE of the same weights, its latents `gain` times as large."""

    def __init__(
        self, gain: float, autoencoder: Mapping[str, Any], fold: int = 4, scale: float = 1.0
    ) -> None:
        super().__init__(autoencoder, fold, scale)
        self.gain = gain

    def encode(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.gain * super().encode(raw, generator)

    def decode(self, state: Tensor) -> Tensor:
        return super().decode(state / self.gain)
