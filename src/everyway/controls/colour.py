"""Colour adjustment: what is drawn takes on the colours of a picture.

Source: the released code of Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 600


def adjusted(drawn: Tensor, reference: Tensor, rate: float = 1.0, curve: bool = False) -> Tensor:
    """The drawn picture (3, H, W) in [-1, 1] with mean and spread of the reference (3, h, w) in
    every channel.

    rate: in [0, 1], of the way there; the first release went half of it.
    curve: with the reference's whole distribution of values, not its mean and spread alone.
    """
    reference = reference.to(drawn)
    made = standardised(drawn) * spread(reference) + mean(reference)
    if curve:
        made = torch.stack([redistributed(x, r) for x, r in zip(made, reference)])
    return torch.lerp(drawn, made, rate).clamp(-1, 1)


def mean(picture: Tensor) -> Tensor:
    """(3, H, W) -> (3, 1, 1)."""
    return picture.mean((1, 2), keepdim=True)


def spread(picture: Tensor) -> Tensor:
    """(3, H, W) -> (3, 1, 1)."""
    return picture.std((1, 2), keepdim=True)


def standardised(picture: Tensor) -> Tensor:
    """Of mean 0 and spread 1 in every channel; a channel of one value is 0."""
    return (picture - mean(picture)) / spread(picture).clamp_min(1e-6)


def redistributed(channel: Tensor, reference: Tensor) -> Tensor:
    """One channel (H, W), in its order, with the values of the reference (h, w): both cumulative
    histograms, of BINS over their common range, become one."""
    x, r = channel.double().cpu().numpy(), reference.double().cpu().numpy()
    ends = min(x.min(), r.min()), max(x.max(), r.max())
    edges = np.linspace(*ends, BINS + 1)[:-1]
    of_x, of_r = (np.histogram(a, BINS, ends)[0].cumsum() / a.size for a in (x, r))
    return torch.from_numpy(np.interp(np.interp(x, edges, of_x), of_r, edges)).to(channel)
