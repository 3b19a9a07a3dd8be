"""Categorical prediction: a network tells how likely each token is, the clean state is their mean.

A text latent of a vector a token is one of finitely many points.  Cross-entropy asks a network
which, where the square error asks for their mean alone.  What it tells, place by place, is made
sentences of by what captions say after what: while there is noise, places that are denoised side by
side otherwise choose words of different sentences (docs/LOG.md).

Shapes: B sentences, L tokens, D width, V vocabulary.
Source: Dieleman et al., "Continuous diffusion for categorical data", 2022, arXiv 2211.15089.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.process.gaussian import GaussianProcess, Parameterisation
from everyway.process.schedules import Schedule

NEAR = 16.0
"""Scores are products of the network's output with vectors of tokens, times NEAR / D."""


class Vocabulary(Protocol):
    """table: (V, D), a vector a token."""

    table: Tensor

    def marginals(self, scores: Tensor) -> Tensor:
        """(B, L, V): how likely each token is at each place of a sentence, if it is as likely as
        softmax(scores) (B, L, V) by itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """The network's output (B, L, D) is nearest to the vectors of the likeliest tokens.

    shown: what says how a network is shown a state.
    """

    noise_from: ClassVar[float] = 0.1  # as of a network that predicts the clean state
    vocabulary: Vocabulary
    shown: Parameterisation

    def check(self, schedule: Schedule) -> None:
        self.shown.check(schedule)

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.shown.scale_in(alpha, sigma)

    def slope(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)

    def scores(self, raw: Tensor) -> Tensor:
        """(..., L, V), logits of the tokens."""
        table = self.vocabulary.table.to(raw)
        return (raw @ table.mT - table.square().sum(1) / 2) * (NEAR / table.shape[1])

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Products are made sentence by sentence, for the bits that each has alone."""
        likely = self.vocabulary.marginals(torch.stack([self.scores(own) for own in raw]))
        table = self.vocabulary.table.to(likely)
        return torch.stack([own @ table for own in likely]).to(raw.dtype)

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(B,), the mean cross-entropy of a token in units of log V."""
        table = self.vocabulary.table.to(x0)
        tokens = torch.cdist(x0, table).argmin(-1)
        lost = F.cross_entropy(self.scores(raw.float()).mT, tokens, reduction="none")
        return lost.mean(1) / math.log(len(table))


def categorical(process: GaussianProcess, codec: Any) -> GaussianProcess:
    """The process of a text whose codec counts what follows what; of any other it is as it was."""
    if getattr(codec, "bigrams", None) is None:
        return process
    made = Categorical(vocabulary=codec, shown=process.parameterisation)
    return replace(process, parameterisation=made)
