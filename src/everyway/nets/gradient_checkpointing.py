"""Gradient checkpointing: a block's inside is computed again on the way back and not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: Any, gradient_checkpointing: bool) -> Tensor:
    """block(*inputs), checkpointed where that is wanted and gradients are.

    inputs: tensors, contexts and None.
    """
    if gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
