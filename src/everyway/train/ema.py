"""The moving average of a network's weights, by an exponential or a power function of time."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class EMA:
    """weights: name -> the average of a float tensor; others as they were.

    After n updates the decay is min(decay, (1+n)/(10+n)).  With a `length` it is that of a power
    function instead: what step t left weighs t^gamma in the average, however long the training, so
    that its standard deviation is that part of the training's length (0.2887 is a plain mean).

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2023, arXiv 2312.02696.
    """

    def __init__(self, network: nn.Module, decay: float, length: float = 0.0) -> None:
        self.decay, self.exponent = decay, exponent(length) if length else None
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, n: int) -> None:
        """Move towards the network's weights; n counts the updates done before this one."""
        live = network.state_dict()
        names = [k for k, v in self.weights.items() if v.is_floating_point()]
        own = [self.weights[k] for k in names]
        torch._foreach_lerp_(own, [live[k] for k in names], 1.0 - self._decay(n))

    def _decay(self, n: int) -> float:
        if self.exponent is None:
            return min(self.decay, (1 + n) / (10 + n))
        return (n / (n + 1)) ** (self.exponent + 1)


def exponent(length: float) -> float:
    """gamma of the power function whose relative width is `length`, which is
    sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)): the largest root of a cubic."""
    wide = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - wide, 12.0 - wide]).real.max())
