"""The Fréchet distance between two sets of pictures, on the features of a classifier of ours.

Values on these features compare models of one data set with each other and with nothing else.
Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv 1706.08500.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everyway.errors import UsageError


class _AsGiven(nn.Module):
    """Features that were computed before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of features (N, D) and (M, D); N and M above 1."""
    if min(len(real), len(made)) < 2:
        raise UsageError("a Fréchet distance needs at least 2 pictures on each side")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise UsageError('torchmetrics is missing; pip install "everyway[eval]"') from None
    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1]))
    metric.update(real.float(), real=True)
    metric.update(made.float(), real=False)
    return float(metric.compute())


def frechet_interval(real: Tensor, made: Tensor, draws: int = 40) -> tuple[float, float, float]:
    """(value, low, high), 95 %: 1.96 times the spread of `draws` bootstraps on either side.

    The spread alone is taken from them: pictures that are drawn twice move their mean upwards.
    """
    source, value = torch.Generator().manual_seed(0), frechet_distance(real, made)
    again = torch.tensor(
        [frechet_distance(_drawn(real, source), _drawn(made, source)) for _ in range(draws)]
    )
    spread = 1.96 * float(again.std())
    return value, max(0.0, value - spread), value + spread


def _drawn(features: Tensor, source: torch.Generator) -> Tensor:
    return features[torch.randint(len(features), (len(features),), generator=source)]
