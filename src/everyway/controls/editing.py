"""Editing a text in its latent space: what a negative prompt says goes, what a positive one says
comes.

Source: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

from torch import Tensor


def edited(z: Tensor, negative: Tensor | None = None, positive: Tensor | None = None) -> Tensor:
    """Latents of texts z (B, ...) without their part along the negative one, plus the positive one.

    negative, positive: latents of texts, (1, ...) or (B, ...); None leaves that out.
    """
    out = z if negative is None else z - along(z, negative)
    return out if positive is None else out + positive


def along(z: Tensor, direction: Tensor) -> Tensor:
    """The part of every z (B, ...) in its direction (1, ...) or (B, ...), any length of which."""
    flat = z.flatten(1)
    unit = direction.flatten(1) / direction.flatten(1).norm(dim=1, keepdim=True)
    return ((flat * unit).sum(1, keepdim=True) * unit).reshape(z.shape)
