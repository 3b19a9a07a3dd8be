"""Embeddings of times and positions, and what stands for a context that is not given."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from everyway.contracts import Context, like_rows


def sinusoid(tau: Tensor, dim: int) -> Tensor:
    """(B,) -> (B, dim) float32: cosines first, then sines, of tau * 10000^(-k / half).

    tau is raw (0 .. 1000 in published models).  An odd dim gets one zero column.
    """
    half = dim // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=tau.device).float() / half)
    angles = tau.float()[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, dim % 2))


def resize_positions(table: Tensor, side: int, height: int, width: int) -> Tensor:
    """(1, side^2, D) patch positions -> (1, height * width, D), bilinear, without antialiasing."""
    grid = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def with_null(context: Context, tokens: Tensor, null: Tensor | None) -> Tensor:
    """A context's tokens (B, ...), blended with `null` by its weight, and that where it is dropped.

    null: broadcast to them; None is refused with ValueError where one is needed.
    """
    if context.weight is None and context.dropped is None:
        return tokens
    if null is None:
        raise ValueError("this network has no null of its own; encode an empty text for it")
    if context.weight is not None:
        weight = like_rows(context.weight, tokens).to(tokens)
        tokens = torch.lerp(null.to(tokens).expand_as(tokens), tokens, weight)
    if context.dropped is not None:
        tokens = torch.where(like_rows(context.dropped, tokens), null, tokens)
    return tokens
