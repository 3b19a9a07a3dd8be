"""Gradient checkpointing: a block's inside is computed again on the way back and not kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: Tensor | None, gradient_checkpointing: bool) -> Tensor:
    """block(*inputs), checkpointed where that is wanted and gradients are."""
    if gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
