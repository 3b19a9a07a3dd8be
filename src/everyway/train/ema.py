"""The exponential moving average of a network's weights, warmed up to forget early steps."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """weights: name -> the average of a float tensor; others as they were.

    After n updates the decay is min(decay, (1+n)/(10+n)).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, n: int) -> None:
        """Move towards the network's weights; n counts the updates done before this one."""
        rate = 1.0 - min(self.decay, (1 + n) / (10 + n))
        live = network.state_dict()
        names = [k for k, v in self.weights.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in names], [live[k] for k in names], rate)
